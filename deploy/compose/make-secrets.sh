#!/bin/sh
# Random passwords and keys for compose.yaml: files in secrets/, 0600 in a folder 0700, and pgpass for the profile.
# Those that are there stay: PostgreSQL and MinIO have learned them.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets

# make NAME BYTES: a file with that many random bytes, in hexadecimal digits.
make() {
    [ ! -s "secrets/$1" ] || return 0
    od -An "-N$2" -tx1 /dev/urandom | tr -d ' \n' >"secrets/$1.new"
    mv "secrets/$1.new" "secrets/$1"
}
make postgres_password 24
make grange_password 24
make minio_root_user 8
make minio_root_password 24
make minio_access_key 8
make minio_secret_key 20

# The names of role and database are those of .env, as compose.yaml takes them.
# shellcheck source=/dev/null
[ ! -f .env ] || . ./.env
printf '127.0.0.1:%s:%s:%s:%s\n' "${POSTGRES_PORT:-5432}" "${GRANGE_DATABASE:-grange}" "${GRANGE_ROLE:-grange}" \
    "$(cat secrets/grange_password)" >secrets/pgpass.new
mv secrets/pgpass.new secrets/pgpass
echo "secrets/ has passwords and keys; secrets/pgpass is what profile.toml names as passfile"
