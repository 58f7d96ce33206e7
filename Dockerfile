# deconfound: docker build -t deconfound . && docker run --rm deconfound --help
#
# The image holds what is installed and nothing else; mount data at /data:
#   docker run --rm -v "$PWD:/data" deconfound compare cells.csv --images-root images --out study
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
# PIP_EXTRA_INDEX_URL: the address of an index with CPU builds, from the installation page of
# PyTorch. Left out, the build for x86-64 brings the libraries of CUDA.
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/deconfound \
    && /opt/deconfound/bin/pip install --no-cache-dir --constraint requirements-newest.txt .

FROM python:3.13-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/deconfound /opt/deconfound
RUN useradd --create-home deconfound
USER deconfound
WORKDIR /data
ENTRYPOINT ["/opt/deconfound/bin/deconfound"]
