# The scaler, with the agent for its process driver. From the repository's root:
# docker build -f docker/otto-scaler.Dockerfile .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-scaler -p otto-worker -p otto-cli \
    && mkdir -p /out/empty \
    && cp "target/$target/release/otto-scaler" "target/$target/release/otto-worker" "target/$target/release/otto" /out/

FROM scratch
COPY --from=build /out/otto-scaler /otto-scaler
COPY --from=build /out/otto-worker /otto-worker
# There is no shell here: `otto demo` is what an event without a command runs.
COPY --from=build /out/otto /otto
COPY --from=build --chown=65532:65532 /out/empty /var/lib/otto
USER 65532:65532
EXPOSE 9090 9091
VOLUME /var/lib/otto
ENTRYPOINT ["/otto-scaler"]
CMD ["--driver", "process", "--grpc-addr", "0.0.0.0:9090", "--admin-addr", "0.0.0.0:9091", "--data-dir", "/var/lib/otto"]
