#!/bin/sh
# A role, a password and a database for one grange profile:
#     create-database.sh ROLE PASSFILE [DATABASE]
# As an administrator of the server: on Debian as the account postgres, elsewhere with PGHOST, PGPORT, PGUSER as psql
# takes them. PASSFILE is the file (libpq's form, 0600) that belongs to the profile: it is made with a random
# password, or the password in it is set. To change a password, remove the file and run this again.
# The password is in no argument of any program, and does not reach the server: only its verifier does.
set -eu
umask 077
usage="usage: create-database.sh ROLE PASSFILE [DATABASE]"
case $# in 2 | 3) ;; *) echo "$usage" >&2; exit 2 ;; esac
role=$1 passfile=$2 database=${3:-$1}
here=$(dirname "$0")

for name in "$role" "$database"; do
    case $name in
        '' | [!a-z]* | *[!a-z0-9_]*)
            echo "'$name': expected small letters, digits and underscores, a letter first" >&2
            exit 2 ;;
    esac
done
case $role in
    postgres | pg_*) echo "'$role' is a name of PostgreSQL's own: choose another one" >&2; exit 2 ;;
esac

if [ ! -s "$passfile" ]; then
    password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    printf '*:*:%s:%s:%s\n' "$database" "$role" "$password" >"$passfile.new"
    mv "$passfile.new" "$passfile"
fi
line=$(grep -m 1 "^[^#]*:$database:$role:" "$passfile") || {
    echo "$passfile has no line for the database $database and the role $role:" >&2
    echo "expected HOST:PORT:$database:$role:PASSWORD, with * for any host and port" >&2
    exit 1
}
chmod 600 "$passfile"

verifier=$(printf '%s' "${line##*:}" | python3 -I "$here/scram_verifier.py")
# Names and verifier hold no quotes and no backslashes. printf is a builtin of the shell: no arguments to be seen.
{
    printf "\\\\set role '%s'\n\\\\set database '%s'\n\\\\set password '%s'\n" "$role" "$database" "$verifier"
    cat "$here/create.sql"
} | psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=postgres --file=-

cat <<END
The database $database belongs to $role. In the profile.toml of its user:
    database = "postgresql://$role@HOST/$database?sslmode=verify-full&passfile=/home/USER/.grange/pgpass"
and $passfile, moved there: owned by that user, 0600.
END
