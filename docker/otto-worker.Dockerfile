# The agent alone. From the repository's root: docker build -f docker/otto-worker.Dockerfile .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-worker \
    && mkdir -p /out && cp "target/$target/release/otto-worker" /out/

FROM scratch
COPY --from=build /out/otto-worker /otto-worker
USER 65532:65532
ENTRYPOINT ["/otto-worker"]
