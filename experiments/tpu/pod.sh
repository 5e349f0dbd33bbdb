#!/bin/sh
# A slice of several hosts. The workdir must lie where all of them see it: WORKDIR=/mnt/bucket/runs/a with BUCKET=bucket.
. "$(dirname "$0")/common.sh"
: "${BUCKET:?name a bucket for the run: BUCKET=...}"
case "$WORKDIR" in /mnt/bucket/*) ;; *) echo "WORKDIR must begin with /mnt/bucket/, found $WORKDIR" >&2; exit 2 ;; esac

gcloud compute tpus tpu-vm create "$NAME" --project "$PROJECT" --zone "$ZONE" --accelerator-type "$TYPE" --version "$VERSION"
install
on_hosts "sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket && gcsfuse --implicit-dirs '$BUCKET' /mnt/bucket"
train "$@"
