#!/bin/sh
# A bucket, and a user that may do everything in it and nothing elsewhere, on a MinIO:
#     minio-bucket.sh URL BUCKET
# Needs MinIO's client `mc`. May be run again. Keys are in no argument of any program; they come from files:
#     MINIO_ROOT_USER_FILE, MINIO_ROOT_PASSWORD_FILE   the administrator's
#     ACCESS_KEY_FILE, SECRET_KEY_FILE                 those that the user is to have
set -eu
umask 077
[ $# = 2 ] || { echo "usage: minio-bucket.sh URL BUCKET" >&2; exit 2; }
url=$1 bucket=$2
case $bucket in
    [!a-z]* | *[!a-z0-9-]* | *-) echo "'$bucket': expected small letters, digits and hyphens" >&2; exit 2 ;;
esac
for file in "$MINIO_ROOT_USER_FILE" "$MINIO_ROOT_PASSWORD_FILE" "$ACCESS_KEY_FILE" "$SECRET_KEY_FILE"; do
    [ -s "$file" ] || { echo "$file is empty or not there: expected a line with a key" >&2; exit 1; }
done

# mc keeps the administrator's keys in its folder: one of its own, removed at the end.
MC_CONFIG_DIR=$(mktemp -d)
export MC_CONFIG_DIR
trap 'rm -rf "$MC_CONFIG_DIR"' EXIT
cat >"$MC_CONFIG_DIR/policy.json" <<END
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Resource": ["arn:aws:s3:::$bucket"],
   "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]},
  {"Effect": "Allow", "Resource": ["arn:aws:s3:::$bucket/*"],
   "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
              "s3:ListMultipartUploadParts"]}]}
END
# Two lines on standard input stand for the two keys.
cat_lines() { for file; do printf '%s\n' "$(cat "$file")"; done; }

cat_lines "$MINIO_ROOT_USER_FILE" "$MINIO_ROOT_PASSWORD_FILE" | mc --quiet alias set store "$url" >/dev/null
mc --quiet mb --ignore-existing "store/$bucket"
mc --quiet admin policy create store "$bucket" "$MC_CONFIG_DIR/policy.json"
cat_lines "$ACCESS_KEY_FILE" "$SECRET_KEY_FILE" | mc --quiet admin user add store >/dev/null
mc --quiet admin policy attach store "$bucket" --user "$(cat "$ACCESS_KEY_FILE")" >/dev/null
echo "The user of $ACCESS_KEY_FILE may do everything in the bucket $bucket"
