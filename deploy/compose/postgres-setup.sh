#!/bin/sh
# In the container postgres-setup: the role and the database of the profile, by create.sql, with passwords from files.
set -eu
: "${GRANGE_ROLE:?}" "${GRANGE_DATABASE:?}"
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD
# psql itself reads the file with the password, so it is in no argument of any program.
psql --no-psqlrc --quiet --host=postgres --username=postgres --dbname=postgres --file=- <<END
\set role \`echo "\$GRANGE_ROLE"\`
\set database \`echo "\$GRANGE_DATABASE"\`
\set password \`cat /run/secrets/grange_password\`
\i /etc/grange/create.sql
END
echo "The database $GRANGE_DATABASE belongs to $GRANGE_ROLE"
