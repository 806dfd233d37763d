# The scaler. From the repository's root:
#   docker build -f docker/otto-scaler.Dockerfile --target kubernetes .   the scaler alone: its workers are Pods
#   docker build -f docker/otto-scaler.Dockerfile .                       with the agent, for its process driver
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-scaler -p otto-worker -p otto-cli \
    && mkdir -p /out/empty \
    && cp "target/$target/release/otto-scaler" "target/$target/release/otto-worker" "target/$target/release/otto" /out/

FROM scratch AS kubernetes
COPY --from=build /out/otto-scaler /otto-scaler
COPY --from=build --chown=65532:65532 /out/empty /var/lib/otto
USER 65532:65532
EXPOSE 9090 9091
VOLUME /var/lib/otto
# Settings as variables, which yours replace; a flag would win over them.
ENV OTTO_DRIVER=kubernetes OTTO_GRPC_ADDR=[::]:9090 OTTO_ADMIN_ADDR=[::]:9091 OTTO_DATA_DIR=/var/lib/otto
ENTRYPOINT ["/otto-scaler"]

FROM kubernetes AS process
COPY --from=build /out/otto-worker /otto-worker
# There is no shell here: `otto demo` is what an event without a command runs.
COPY --from=build /out/otto /otto
ENV OTTO_DRIVER=process
