# lit-tune in a slim image: no compiler, no pip, code that its user cannot change.
#
#   docker build -t lit-tune .
#   docker run --rm -v lit-tune-cache:/cache -v lit-tune-runs:/runs lit-tune fit --config configs/quickstart.yaml
#   docker run --rm -v "$PWD/.cache:/cache" -v "$PWD:/work" -w /work --user "$(id -u)" lit-tune fit --config my.yaml
#
# HF_TOKEN and WANDB_API_KEY are given to `docker run -e`, never to the build. `make image-test` builds and tries it.
# A folder mounted for /cache or /runs must exist and belong to the --user. There is no compiler for `model.compile`:
# add g++ in an image built on this one.
#
# Any Debian-like base with Python 3.11 or newer; what it lacks of python3, python3-venv and tini comes by apt.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- the environment, built with tools that do not reach the image
FROM ${BASE_IMAGE} AS dependencies
# torch on PyPI is the CUDA build for Linux (gigabytes more), so torch alone comes from this index, before the rest.
# For GPUs name the index of a CUDA build. Empty: pip's own configuration decides; plain pip takes PyPI's CUDA build.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml, separated by spaces: `wandb`, `onnx`.
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN set -eu; missing=""; \
    command -v python3 > /dev/null || missing="python3"; \
    python3 -c "import ensurepip" 2> /dev/null || missing="$missing python3-venv"; \
    if [ -n "$missing" ]; then \
        apt-get update; apt-get install -y --no-install-recommends $missing ca-certificates; \
    fi; \
    python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/lit-tune
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The builder's own indexes and certificates are mounted (docker build --secret id=pip_conf,src=...), not copied.
# What nobody needs here goes again (230 MB): headers and test programs of torch and pyarrow (import torch wants
# torch_shm_manager), the packages' own tests. Byte code is not shipped (300 MB): the first start takes 5 s longer and
# leaves 90 MB in the cache.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    set -eu; \
    install="/opt/pip/bin/pip --python /opt/lit-tune/bin/python install --no-compile -c constraints.txt"; \
    if [ -n "$TORCH_INDEX_URL" ]; then $install --no-deps --index-url "$TORCH_INDEX_URL" torch; fi; \
    EXTRAS="$EXTRAS" python3 -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [project['optional-dependencies'][name] for name in os.environ['EXTRAS'].split()]; \
print(*sum(extras, project['dependencies']), sep='\n')" > requirements.txt; \
    $install -r requirements.txt; \
    cd /opt/lit-tune/lib/python3*/site-packages; \
    find torch/bin -mindepth 1 -maxdepth 1 -not -name torch_shm_manager -exec rm -r {} +; \
    rm -rf torch/test torch/include torch/share pyarrow/include pyarrow/src; \
    find networkx numpy pandas pyarrow sympy -type d -name tests -prune -exec rm -r {} +

# ---- lit-tune itself, apart: a change of code rebuilds and pushes less than a megabyte
FROM dependencies AS code
COPY . .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    /opt/pip/bin/pip --python /opt/lit-tune/bin/python install --no-compile --no-deps --prefix /code .

# ---- the image
FROM ${BASE_IMAGE}
RUN set -eu; missing=""; \
    command -v python3 > /dev/null || missing="python3"; \
    command -v tini > /dev/null || missing="$missing tini"; \
    if [ -n "$missing" ]; then \
        apt-get update; apt-get install -y --no-install-recommends $missing ca-certificates; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin lit-tune; \
    install -d -m 1777 /cache /runs; install -d /app; ln -s /runs /app/runs
COPY --from=dependencies /opt/lit-tune /opt/lit-tune
COPY --from=code /code /opt/lit-tune
COPY configs /app/configs
# All that is written goes to the two volumes, byte code too, so that it also runs with --read-only and as any --user.
ENV PATH=/opt/lit-tune/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    LIT_TUNE_CACHE=/cache/lit_tune \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    TMPDIR=/cache \
    PYTHONPYCACHEPREFIX=/cache/pycache \
    PYTHONUNBUFFERED=1
WORKDIR /app
VOLUME ["/cache", "/runs"]
USER 10001:10001
ENTRYPOINT ["tini", "--", "lit-tune"]
CMD ["--help"]
