#!/bin/sh
# A machine that is waited for, is cheap, and may be taken away: asked for again and again until the run is done.
. "$(dirname "$0")/common.sh"
: "${BUCKET:?name a bucket for the run, which outlives the machine: BUCKET=...}"
case "$WORKDIR" in /mnt/bucket/*) ;; *) echo "WORKDIR must begin with /mnt/bucket/, found $WORKDIR" >&2; exit 2 ;; esac

queued() {
  gcloud compute tpus queued-resources "$@" --project "$PROJECT" --zone "$ZONE"
}

until queued describe "$NAME" --format 'value(state.state)' 2>/dev/null | grep -q ACTIVE && install \
  && on_hosts "sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket && { mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs '$BUCKET' /mnt/bucket; }" \
  && train "$@"; do
  state="$(queued describe "$NAME" --format 'value(state.state)' 2>/dev/null || echo NONE)"
  case "$state" in
    NONE) queued create "$NAME" --node-id "$NAME" --accelerator-type "$TYPE" --runtime-version "$VERSION" --spot ;;
    FAILED | SUSPENDED) queued delete "$NAME" --force --quiet ;;
  esac
  sleep 60
done
queued delete "$NAME" --force --quiet
