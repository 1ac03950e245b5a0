#!/usr/bin/env bash
# Builds the image and uses it as a stranger would; the last line says PASS or FAIL. Not for CI: minutes, 5 GB.
#
#   tests/image/test_image.sh          build, then every check
#   tests/image/test_image.sh build    build only
#
# docker is used if its daemon answers, else podman, else buildah (as root; debootstrap, if installed, makes the base,
# once, and no image registry is needed). What the environment may say:
#   IMAGE            name of the image                        (lit-tune:latest)
#   BASE_IMAGE       see the Dockerfile
#   TORCH_INDEX_URL  see the Dockerfile; empty if not set and a folder that pip is configured with has torch for the CPU
#   EXTRAS           see the Dockerfile
#   IMAGE_WORK       base and storage of buildah              (~/.cache/lit-tune-image)
#   MIRROR           Debian's mirror for debootstrap          (http://deb.debian.org/debian)
# pip's configuration, its certificates and the folders it names are mounted into the build, never copied.
# shellcheck disable=SC2016  # what stands in single quotes is for the shell in the image
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
image="${IMAGE:-lit-tune:latest}"
work="${IMAGE_WORK:-$HOME/.cache/lit-tune-image}"
mirror="${MIRROR:-http://deb.debian.org/debian}"
scratch="$(mktemp -d)"
buildah_container=""
engine=""

say() { printf '== %s\n' "$*"; }
die() { printf 'FAIL image: %s\n' "$*"; exit 1; }

cleanup() {
    if [ -n "$buildah_container" ]; then buildah_ rm "$buildah_container" > /dev/null || true; fi
    if [ "$engine" = docker ] || [ "$engine" = podman ]; then
        "$engine" volume rm -f "lit-tune-test-$$-runs" "lit-tune-test-$$-cache" > /dev/null 2>&1 || true
    fi
    rm -rf "$scratch"
}
trap cleanup EXIT

choose_engine() {
    if timeout 20 docker version --format '{{.Server.Version}}' > /dev/null 2>&1; then engine=docker
    elif timeout 20 podman info > /dev/null 2>&1; then engine=podman
    elif command -v buildah > /dev/null; then engine=buildah
    else die "no docker daemon, podman or buildah here"
    fi
    say "engine: $engine"
}

# Storage of its own, so that nothing of the machine's is touched and one folder holds all that can be deleted.
buildah_() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$storage_driver" "$@"; }

choose_storage() {
    mkdir -p "$work"
    for storage_driver in overlay vfs; do  # overlay needs a file system that can carry it; vfs copies every layer
        if buildah_ info > /dev/null 2>&1; then say "storage: $storage_driver in $work"; return; fi
    done
    die "buildah can use neither overlay nor vfs in $work"
}

# Debian 12 with python3 3.11, python3-venv and tini, and without what a package manager leaves behind.
make_base() {
    if buildah_ inspect --type image lit-tune-base > /dev/null 2>&1; then return; fi
    say "base: debootstrap --variant=minbase bookworm"
    debootstrap --variant=minbase --include=python3,python3-venv,tini,ca-certificates bookworm "$scratch/base" \
        "$mirror" > "$scratch/debootstrap.log" 2>&1 || { tail -20 "$scratch/debootstrap.log"; die "debootstrap"; }
    rm -rf "$scratch"/base/var/cache/apt/* "$scratch"/base/var/lib/apt/lists/* "$scratch"/base/var/log/* \
        "$scratch"/base/usr/share/{doc,info,locale,man}/*
    local container
    container="$(buildah_ from scratch)"
    buildah_ add --quiet "$container" "$scratch/base" / > /dev/null
    buildah_ config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$container"
    buildah_ commit --quiet --rm "$container" lit-tune-base > /dev/null
    rm -rf "$scratch/base"
}

# pip's settings of this user, in $scratch: pip.conf, ca (the certificates), folders (the local ones it names).
collect_pip_settings() {
    python3 - "$scratch" <<'PYTHON'
import ast, os, pathlib, subprocess, sys
from urllib.parse import unquote, urlparse

scratch = pathlib.Path(sys.argv[1])
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
settings = {}
for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment overrules files
    key, _, value = line.partition("=")
    if not key.startswith((":env:", "global.", "install.")):
        continue
    settings[key.removeprefix(":env:.").removeprefix("global.").removeprefix("install.")] = ast.literal_eval(value)
folders = set()
for key in ("find-links", "index-url", "extra-index-url"):
    for place in settings.get(key, "").split():
        url = urlparse(place)
        if url.scheme not in ("", "file"):
            continue
        folder = pathlib.Path(unquote(url.path)).resolve()
        if key != "find-links":  # the pages of an index may link to files beside it
            folder = folder.parent
        if not folder.is_dir():
            continue
        if folder == folder.parent:
            sys.exit(f"{key}: {place} would mount the whole file system into the build")
        folders.add(folder)
folders = {folder for folder in folders if not folders & set(folder.parents)}
certificates = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
if certificates and pathlib.Path(certificates).is_file():
    (scratch / "ca").write_bytes(pathlib.Path(certificates).read_bytes())
    settings["cert"] = "/run/secrets/ca_bundle"
for unwanted in ("cache-dir", "require-virtualenv", "user", "target", "prefix", "python"):
    settings.pop(unwanted, None)
lines = [f"{key} = " + "\n    ".join(value.split()) for key, value in settings.items()]
(scratch / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
(scratch / "folders").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
PYTHON
}

build() {
    collect_pip_settings
    local options=(--tag "$image") folder
    options+=(--secret "id=pip_conf,src=$scratch/pip.conf")
    if [ -f "$scratch/ca" ]; then options+=(--secret "id=ca_bundle,src=$scratch/ca"); fi
    while read -r folder; do
        if [ "$engine" = docker ]; then
            die "pip's configuration names the folder $folder, which docker build cannot mount: use podman or buildah"
        fi
        options+=(--volume "$folder:$folder:ro")
        if [ -z "${TORCH_INDEX_URL+set}" ] && [ -n "$(find "$folder" -name 'torch-*+cpu-*.whl' -print -quit)" ]; then
            TORCH_INDEX_URL=""
        fi
    done < "$scratch/folders"
    if [ -n "${TORCH_INDEX_URL+set}" ]; then options+=(--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"); fi
    if [ -n "${EXTRAS:-}" ]; then options+=(--build-arg "EXTRAS=$EXTRAS"); fi
    if [ "$engine" = buildah ] && [ -z "${BASE_IMAGE:-}" ] && command -v debootstrap > /dev/null; then
        make_base
        BASE_IMAGE=localhost/lit-tune-base
    fi
    if [ -n "${BASE_IMAGE:-}" ]; then options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
    say "build: $image"
    case "$engine" in
        docker) DOCKER_BUILDKIT=1 docker build "${options[@]}" "$root" ;;
        podman) podman build --layers "${options[@]}" "$root" ;;
        buildah) buildah_ build --layers --isolation chroot "${options[@]}" "$root" ;;
    esac
}

# in_image ARG...: the entry point with these arguments; in_shell SCRIPT: sh in its place. No network, the image's user,
# nothing written outside the volumes (docker, podman: --read-only; buildah has no such thing: looked for afterwards).
in_image() {
    case "$engine" in
        buildah) buildah_run tini -s -- lit-tune "$@" ;;
        *) "$engine" run --rm --read-only --network none "${volumes[@]}" "$image" "$@" ;;
    esac
}

in_shell() {
    case "$engine" in
        buildah) buildah_run sh -c "$1" ;;
        *) "$engine" run --rm --read-only --network none "${volumes[@]}" --entrypoint sh "$image" -c "$1" ;;
    esac
}

buildah_run() {
    unshare --net buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$storage_driver" \
        run --isolation chroot "$buildah_container" -- "$@"
}

failures=0
check() {  # check DESCRIPTION COMMAND...: one line, and the output of what failed
    local description="$1"
    shift
    if "$@" > "$scratch/output" 2>&1; then printf 'ok    %s\n' "$description"
    else failures=$((failures + 1)); printf 'FAIL  %s\n' "$description"; tail -40 "$scratch/output" | sed 's/^/      /'
    fi
}

says() {  # says EXPECTED COMMAND...: the command's output is exactly this
    local expected="$1" given
    shift
    given="$("$@")"
    [ "$given" = "$expected" ] || { printf 'expected: %s\ngiven: %s\n' "$expected" "$given"; return 1; }
}

entry_point() {
    case "$engine" in
        buildah) buildah_ inspect --format '{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.User}}' "$image" ;;
        *) "$engine" image inspect --format '{{.Config.Entrypoint}} {{.Config.User}}' "$image" ;;
    esac
}

size_in_bytes() {
    case "$engine" in
        buildah) du -sb --apparent-size "$(buildah_ mount "$buildah_container")" | cut -f1 ;;
        *) "$engine" image inspect --format '{{.Size}}' "$image" ;;
    esac
}

nothing_written_outside_the_volumes() {
    local tree written
    tree="$(buildah_ mount "$buildah_container")"
    written="$(find "$tree" -xdev -newer "$scratch/start" -type f -not -path "$tree/run/*" -not -path "$tree/etc/*")"
    [ -z "$written" ] || { printf '%s\n' "$written"; return 1; }
}

run_checks() {
    volumes=(-v "lit-tune-test-$$-runs:/runs" -v "lit-tune-test-$$-cache:/cache")
    if [ "$engine" = buildah ]; then buildah_container="$(buildah_ from --pull-never "$image")"; fi
    touch "$scratch/start"
    local start
    check "entry point is tini before lit-tune, user 10001" says "[tini -- lit-tune] 10001:10001" entry_point
    check "id -u is 10001" says 10001 in_shell 'id -u'
    check "the code, the configs and the environment cannot be written" in_shell \
        'for d in / /app /app/configs /opt/lit-tune /opt/lit-tune/lib/python3*/site-packages/lit_tune /etc; do
             if touch "$d/x" 2> /dev/null; then echo "$d is writable"; exit 1; fi
         done'
    check "the volumes can be written" in_shell 'touch /cache/x /runs/x && rm /cache/x /runs/x'
    check "no compiler, no pip, no pip configuration, no certificates of the builder" in_shell \
        'for tool in cc gcc c++ pip pip3; do if command -v $tool; then exit 1; fi; done
         for path in /etc/pip.conf /run/secrets/ca_bundle /opt/pip; do if [ -e $path ]; then exit 1; fi; done
         ! env | grep -iE "^pip_|token|secret|password"'
    check "there is no network" in_shell \
        '! python3 -c "import socket; socket.create_connection((\"1.1.1.1\", 53), 3)" 2> /dev/null'
    check "lit-tune --version" in_image --version
    start=$SECONDS
    check "fit --config configs/quickstart.yaml" in_image fit --config configs/quickstart.yaml
    cp "$scratch/output" "$scratch/fit"
    printf '      fit took %d s\n' "$((SECONDS - start))"
    check "the model is on the volume /runs and loads" in_shell \
        'test -f /runs/quickstart/config.yaml && python3 -c "
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(\"/runs/quickstart/best\")
AutoTokenizer.from_pretrained(\"/runs/quickstart/best\")
print(model.config.id2label)"'
    start=$SECONDS
    check "test --config runs/quickstart/config.yaml" in_image test --config runs/quickstart/config.yaml
    printf '      test took %d s\n' "$((SECONDS - start))"
    if [ "$engine" = buildah ]; then
        check "nothing was written outside the volumes" nothing_written_outside_the_volumes
    fi
    tail -15 "$scratch/fit" | sed 's/^/      | /'
    printf 'size  %s MB uncompressed\n' "$(($(size_in_bytes) / 1000000))"
}

choose_engine
if [ "$engine" = buildah ]; then choose_storage; fi
build
if [ "${1:-test}" = build ]; then say "built $image"; exit 0; fi
say "checks"
run_checks
if [ "$failures" -gt 0 ]; then die "$failures check(s) failed"; fi
say "PASS image: $image"
