#!/bin/sh
# A user and a bucket of its own for one grange profile, on a Ceph cluster with an RGW:
#     rgw-bucket.sh URL USER BUCKET CREDENTIALS [READER]
# Needs curl 7.88 or newer, and python3.
# On a machine with radosgw-admin and an administrator's keyring (cephadm: inside `cephadm shell`). May be run again.
# CREDENTIALS: a file (0600) that gets the keys, in the form of ~/.aws/credentials, as the profile [USER].
# READER: another user of the same cluster, who may list and read this bucket and nothing else.
# RGW makes the keys; they are in no argument of any program.
set -eu
umask 077
usage="usage: rgw-bucket.sh URL USER BUCKET CREDENTIALS [READER]"
case $# in 4 | 5) ;; *) echo "$usage" >&2; exit 2 ;; esac
url=${1%/} user=$2 bucket=$3 credentials=$4 reader=${5:-}

for name in "$user" "$bucket" ${reader:+"$reader"}; do
    case $name in
        [!a-z]* | *[!a-z0-9-]* | *-) echo "'$name': expected small letters, digits and hyphens" >&2; exit 2 ;;
    esac
done
case $url in
    https://* | http://127.0.0.1:* | http://localhost:*) ;;
    *) echo "'$url': expected https://HOST; without TLS only to this machine" >&2; exit 2 ;;
esac

# radosgw-admin takes --conf, --name and the like from the environment variable CEPH_ARGS.
account=$(radosgw-admin user info --uid="$user" 2>/dev/null) ||
    account=$(radosgw-admin user create --uid="$user" --display-name="$user")
[ -z "$reader" ] || radosgw-admin user info --uid="$reader" >/dev/null || {
    echo "there is no user $reader: make it first, with a bucket of its own, by this script" >&2
    exit 1
}

printf '%s' "$account" | python3 -I -c '
import json, sys
key = json.load(sys.stdin)["keys"][0]
print("[%s]\naws_access_key_id = %s\naws_secret_access_key = %s" % (sys.argv[1], key["access_key"], key["secret_key"]))
' "$user" >"$credentials.new"
chmod 600 "$credentials.new"
mv "$credentials.new" "$credentials"
access=$(sed -n 's/^aws_access_key_id = //p' "$credentials")
secret=$(sed -n 's/^aws_secret_access_key = //p' "$credentials")

answer=$(mktemp) policy=$(mktemp)
trap 'rm -f "$answer" "$policy"' EXIT

# put PATH FILE: one signed PUT; the keys go by curl's standard input. Ends the script where RGW refuses.
put() {
    digest=$(sha256sum <"$2")
    status=$(printf 'user = "%s:%s"\n' "$access" "$secret" |
        curl --config - --silent --show-error --output "$answer" --write-out '%{http_code}' \
            --aws-sigv4 aws:amz:us-east-1:s3 --header "x-amz-content-sha256: ${digest%% *}" \
            --header 'Content-Type: application/json' --request PUT --data-binary "@$2" "$url/$1")
    case $status in
        2*) ;;
        *) echo "$url/$1: RGW answered $status: $(cat "$answer")" >&2; exit 1 ;;
    esac
}

# A bucket is its owner's alone until a policy says otherwise.
put "$bucket" /dev/null
if [ -n "$reader" ]; then
    cat >"$policy" <<END
{"Version": "2012-10-17", "Statement": [{
  "Sid": "reader", "Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/$reader"]},
  "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject"],
  "Resource": ["arn:aws:s3:::$bucket", "arn:aws:s3:::$bucket/*"]}]}
END
    put "$bucket?policy=" "$policy"
fi
echo "The bucket $bucket belongs to $user, whose keys are in $credentials${reader:+; $reader may read it}"
