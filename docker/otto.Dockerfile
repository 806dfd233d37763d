# The command line, for a Pod that asks the servers, and as the image of demo workers (`/bin/otto demo`: there is no shell;
# not /otto, where workers have the volume of their agent).
# From the repository's root: docker build -f docker/otto.Dockerfile .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p otto-cli \
    && mkdir -p /out && cp "target/$target/release/otto" /out/

FROM scratch
COPY --from=build /out/otto /bin/otto
USER 65532:65532
ENTRYPOINT ["/bin/otto"]
