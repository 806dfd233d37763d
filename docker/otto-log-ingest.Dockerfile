# The log server. From the repository's root: docker build -f docker/otto-log-ingest.Dockerfile .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-log-ingest \
    && mkdir -p /out/empty && cp "target/$target/release/otto-log-ingest" /out/

FROM scratch
COPY --from=build /out/otto-log-ingest /otto-log-ingest
# The data directory belongs to the user the server runs as.
COPY --from=build --chown=65532:65532 /out/empty /var/lib/otto
USER 65532:65532
EXPOSE 50051 8080
VOLUME /var/lib/otto
# Settings as variables, which yours replace; a flag would win over them.
ENV OTTO_GRPC_ADDR=[::]:50051 OTTO_HTTP_ADDR=[::]:8080 OTTO_DATA_DIR=/var/lib/otto
ENTRYPOINT ["/otto-log-ingest"]
