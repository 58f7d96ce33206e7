# deconfound with a CPU build of PyTorch: docker build -t deconfound . && docker run --rm deconfound --help
#
# The image holds what is installed and nothing else; mount data at /data:
#   docker run --rm -v "$PWD:/data" deconfound compare cells.csv --images-root images --out study
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
# TORCH_INDEX: the address of an index with CPU builds, from the installation page of PyTorch. Left
# empty, pip takes its own index, whose build for x86-64 brings the libraries of CUDA.
ARG TORCH_INDEX=
RUN python -m venv /opt/deconfound \
    && /opt/deconfound/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
       "$(grep '^torch==' requirements-newest.txt)" \
    && /opt/deconfound/bin/pip install --no-cache-dir --constraint requirements-newest.txt .

FROM python:3.13-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/deconfound /opt/deconfound
RUN useradd --create-home deconfound
USER deconfound
WORKDIR /data
ENTRYPOINT ["/opt/deconfound/bin/deconfound"]
