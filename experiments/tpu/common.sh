# What the scripts share. PROJECT, ZONE, TYPE: of the machine. NAME: what it is called. VERSION: of its system. TEXT: a folder or
# bucket of text, copied to each host. WORKDIR: where the run lies. REPOSITORY: where this code is fetched from.
set -eu

: "${PROJECT:?name the project: PROJECT=...}"
: "${ZONE:?name the zone: ZONE=us-west4-a}"
: "${TYPE:?name the kind of machine: TYPE=v5litepod-8}"
: "${TEXT:?name a folder or bucket of text: TEXT=gs://bucket/text}"
: "${REPOSITORY:?name where this code is fetched from: REPOSITORY=https://...}"
NAME="${NAME:-jaxeff}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"

[ $# -ge 1 ] || { echo "usage: $0 CONFIG [what jaxeff train takes]" >&2; exit 2; }
CONFIG="$1"
shift
WORKDIR="${WORKDIR:-runs/$(basename "$CONFIG" .py)}"

on_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project "$PROJECT" --zone "$ZONE" --worker=all --command "$1"
}

# Each host: the code, an environment with JAX for TPUs, the text.
install() {
  on_hosts "set -e; test -d jaxeff || git clone --depth 1 '$REPOSITORY' jaxeff; cd jaxeff; make env; .venv/bin/pip install --quiet '.[tpu]'"
  on_hosts "cd jaxeff; mkdir -p text; case '$TEXT' in gs://*) gsutil -m rsync -r '$TEXT' text;; esac"
  case "$TEXT" in
    gs://*) ;;
    *) gcloud compute tpus tpu-vm scp --recurse "$TEXT" "$NAME:jaxeff/text" --project "$PROJECT" --zone "$ZONE" --worker=all ;;
  esac
}

# The same command on every host: they find each other. It may be given again: a run goes on from its last checkpoint.
train() {
  on_hosts "cd jaxeff; .venv/bin/jaxeff train '$CONFIG' --data text --workdir '$WORKDIR' $*"
}
