# docker build --tag aam .                                       for processors
# docker build --tag aam:cuda --build-arg COMPUTE=cu130 .        for NVIDIA GPUs
# See docs/docker.md.

FROM python:3.11-slim-bookworm AS builder

# Which build of PyTorch: the last part of an index of PyTorch's own, or another index altogether.
ARG COMPUTE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${COMPUTE}
# Extras of pyproject.toml, as in EXTRAS=onnx,explain.
ARG EXTRAS=

WORKDIR /src
RUN python -m venv /opt/aam
ENV PATH=/opt/aam/bin:$PATH

# PyTorch first, so that this layer stays as long as its version does. What it needs itself comes with the rest, from PyPI.
COPY constraints.txt ./
RUN pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml LICENSE ./
COPY aam aam
RUN pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && pip check \
    && aam --version


FROM python:3.11-slim-bookworm

# The user of `docker run --user` may have no name and no home: programs that ask for one are told here.
ENV PATH=/opt/aam/bin:$PATH \
    USER=aam \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin aam \
    && install --directory --owner aam --group aam /data

COPY --from=builder /opt/aam /opt/aam

WORKDIR /data
USER 1000:1000
ENTRYPOINT ["aam"]
CMD ["--help"]
