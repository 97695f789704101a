-- A role and a database of its own for one grange profile. May be run again: it changes the password, and what is
-- there stays.
-- Variables of psql: role, database, and password, which is a password or, better, its SCRAM verifier. Set them on
-- psql's standard input (create-database.sh does): arguments of a program can be read by everybody on the machine.
\set ON_ERROR_STOP on

-- The statement with the password in no log, and not in the statistics of pg_stat_statements.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
SET pg_stat_statements.track = 'none';

SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') AS role_is_missing,
       NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') AS database_is_missing,
       current_setting('server_version_num')::int >= 170000 AS has_builtin_locales
\gset

\if :role_is_missing
    CREATE ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
\endif
ALTER ROLE :"role" PASSWORD :'password';

-- The collation of the embedded database: by code point, so it never changes with a library of the system.
\if :database_is_missing
    \if :has_builtin_locales
        CREATE DATABASE :"database" OWNER :"role" TEMPLATE template0 ENCODING 'UTF8'
            LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8';
    \else
        CREATE DATABASE :"database" OWNER :"role" TEMPLATE template0 ENCODING 'UTF8'
            LC_COLLATE 'C' LC_CTYPE 'C.UTF-8';
    \endif
\endif
-- Nobody but its owner. grange makes its tables when it first connects.
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
