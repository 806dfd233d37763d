# The agent. From the repository's root: docker build -f docker/otto-worker.Dockerfile .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-worker -p otto-cli \
    && mkdir -p /out/empty && cp "target/$target/release/otto-worker" "target/$target/release/otto" /out/

FROM scratch
COPY --from=build /out/otto-worker /otto-worker
COPY --from=build /out/otto /otto
COPY --from=build --chown=65532:65532 /out/empty /var/spool/otto
USER 65532:65532
ENTRYPOINT ["/otto-worker"]
CMD ["run", "--spool-dir", "/var/spool/otto", "--", "/otto", "demo"]
