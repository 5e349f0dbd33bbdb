#!/bin/sh
# One machine: made, filled, trained on, and deleted when done.
. "$(dirname "$0")/common.sh"

gcloud compute tpus tpu-vm create "$NAME" --project "$PROJECT" --zone "$ZONE" --accelerator-type "$TYPE" --version "$VERSION"
trap 'gcloud compute tpus tpu-vm delete "$NAME" --project "$PROJECT" --zone "$ZONE" --quiet' EXIT
install
train "$@"
gcloud compute tpus tpu-vm scp --recurse "$NAME:jaxeff/$WORKDIR" . --project "$PROJECT" --zone "$ZONE"
