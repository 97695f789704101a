-- What the engine has to know of workflows, of what waits for whom, and of those who work.

-- queue_id: the campaign or queue (groups) whose holder runs a calculation. workflow: run by workers, not by
-- the holder of a queue.
ALTER TABLE process ADD COLUMN queue_id integer;
ALTER TABLE process ADD COLUMN workflow boolean NOT NULL DEFAULT false;
-- parent_id: the workflow that called it; sequence: the number of the call there, from 1; call_hash: what was
-- called with what, so that a workflow that goes on from its record can be compared with it.
ALTER TABLE process ADD COLUMN parent_id bigint;
ALTER TABLE process ADD COLUMN sequence integer;
ALTER TABLE process ADD COLUMN call_hash bytea;
-- use_cache: equal processes may answer it; while it is open and cached_from is set, it waits for that one to end.
-- valid_cache: when it has finished, it may answer equal ones.
ALTER TABLE process ADD COLUMN use_cache boolean NOT NULL DEFAULT true;
ALTER TABLE process ADD COLUMN valid_cache boolean NOT NULL DEFAULT true;
-- Of workflows. ready: a worker has something to do for it. open_children: how many of its calls have not ended;
-- at wake_at of them it becomes ready. awaits: a child without whose end there is nothing to do.
ALTER TABLE process ADD COLUMN ready boolean NOT NULL DEFAULT false;
ALTER TABLE process ADD COLUMN open_children integer NOT NULL DEFAULT 0;
ALTER TABLE process ADD COLUMN wake_at integer NOT NULL DEFAULT 0;
ALTER TABLE process ADD COLUMN awaits bigint;

UPDATE process SET queue_id = campaign_id WHERE state IN ('created', 'waiting', 'running');
UPDATE process SET valid_cache = false WHERE exit_status <> 0;

DROP INDEX process_unfinished;
DROP INDEX process_to_kill;
CREATE INDEX process_unfinished ON process (queue_id, workflow, node_id)
    WHERE state IN ('created', 'waiting', 'running');
CREATE INDEX process_to_kill ON process (queue_id) WHERE to_kill AND state IN ('created', 'waiting', 'running');
-- A call of a workflow is made once, whoever tries again.
CREATE UNIQUE INDEX process_call ON process (parent_id, sequence) WHERE parent_id IS NOT NULL;
-- What workers look for: workflows that nobody has, and their own that are ready.
CREATE INDEX process_ready ON process (node_id) WHERE ready AND worker_id IS NULL AND NOT paused
    AND state IN ('created', 'waiting', 'running');
CREATE INDEX process_owned ON process (worker_id, ready) WHERE workflow AND worker_id IS NOT NULL
    AND state IN ('created', 'waiting', 'running');
-- Calculations that wait for an equal one to end: whoever holds their queue looks after them.
CREATE INDEX process_follows ON process (queue_id, cached_from)
    WHERE cached_from IS NOT NULL AND state IN ('created', 'waiting', 'running');
-- Failures: lists of what ended so are read in this order, and counted without a look at the rows.
CREATE INDEX process_failed ON process (node_id) INCLUDE (superseded_by)
    WHERE state IN ('excepted', 'killed') OR state = 'finished' AND exit_status <> 0;

-- Queues are groups of the type 'queue': one for each computer, one for each host's own cores.

-- role: client, worker (of a daemon) or dispatcher. ended_at: when it was seen that its lock is gone.
ALTER TABLE worker ADD COLUMN role text NOT NULL DEFAULT 'client';
ALTER TABLE worker ADD COLUMN daemon_id integer;
ALTER TABLE worker ADD COLUMN ended_at timestamptz;
CREATE INDEX worker_alive ON worker (id) WHERE ended_at IS NULL;

-- A daemon: a supervisor on a host, for a home there. It holds an advisory lock on the id for as long as it lives.
-- The wishes of people are columns: it looks at them.
CREATE TABLE daemon (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host text NOT NULL,
    home text NOT NULL,
    pid integer NOT NULL,
    workers_wanted integer NOT NULL CHECK (workers_wanted >= 0),
    started_at timestamptz NOT NULL DEFAULT now(),
    stop_asked_at timestamptz,
    restart_asked_at timestamptz,
    stopped_at timestamptz
);
CREATE INDEX daemon_alive ON daemon (id) WHERE stopped_at IS NULL;

-- While there is a row nobody works; at most one.
CREATE TABLE profile_lock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    reason text NOT NULL,
    by_whom text NOT NULL,
    locked_at timestamptz NOT NULL DEFAULT now()
);

-- What happened to processes, in order: rows are only ever added, by the two triggers below and nobody else, and
-- go when their process does. Of one process they lie in the order of their ids.
-- follows: waits for an equal process to end; reused: answered by an equal one. started: when the runner began it,
-- told with its end. waiting: of a workflow, for its calls. released: given back by who had it.
CREATE TYPE event_kind AS ENUM ('created', 'submitted', 'follows', 'claimed', 'started', 'waiting', 'released',
    'paused', 'played', 'kill_asked', 'finished', 'reused', 'excepted', 'killed', 'retried');
-- detail: of paused, why; of an end that is no success, the exit status and message (200 characters); of follows and
-- reused, which process; of retried, as which.
CREATE TABLE event (
    id bigint GENERATED ALWAYS AS IDENTITY,
    process_id bigint NOT NULL,
    time timestamptz NOT NULL,
    worker_id integer,
    attempt smallint NOT NULL,
    kind event_kind NOT NULL,
    detail text
);
CREATE INDEX event_process ON event (process_id, id);
CREATE INDEX event_time ON event USING brin (time);

-- A process that has ended has its exit status and message; nothing where all went well.
CREATE FUNCTION said_of_end(exit_status integer, exit_message text) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT CASE WHEN exit_status = 0 THEN NULL
                   ELSE nullif(concat_ws(': ', exit_status, left(exit_message, 200)), '') END $$;

CREATE FUNCTION note_new_processes() RETURNS trigger LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    INSERT INTO event (process_id, time, worker_id, attempt, kind, detail)
    SELECT node_id, coalesce(finished_at, started_at, clock_timestamp()), worker_id, attempt,
        (CASE WHEN cached_from IS NOT NULL THEN CASE WHEN finished_at IS NULL THEN 'follows' ELSE 'reused' END
              WHEN finished_at IS NOT NULL THEN state::text
              WHEN state = 'running' THEN 'started'
              WHEN worker_id IS NULL THEN 'created' ELSE 'submitted' END)::event_kind,
        CASE WHEN cached_from IS NOT NULL THEN cached_from::text ELSE said_of_end(exit_status, exit_message) END
    FROM added;
    RETURN NULL;
END $$;
CREATE TRIGGER process_noted AFTER INSERT ON process REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION note_new_processes();

-- One plan for a statement that changes one row and for one that changes thousands: both tables hold the same rows, so
-- hashing is right for all, and a nested loop, planned for the first, would be quadratic for the others.
CREATE FUNCTION note_changed_processes() RETURNS trigger LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_nestloop = off AS $$
BEGIN
    INSERT INTO event (process_id, time, worker_id, attempt, kind, detail)
    WITH changed AS MATERIALIZED (
        SELECT n.node_id, n.attempt, n.state, n.finished_at, n.exit_status, n.exit_message, n.cached_from,
            n.superseded_by, coalesce(n.worker_id, o.worker_id) AS of_worker,
            CASE WHEN n.paused AND NOT o.paused THEN 'paused'
                 WHEN o.paused AND NOT n.paused THEN 'played'
                 WHEN n.to_kill AND NOT o.to_kill THEN 'kill_asked'
                 WHEN n.superseded_by IS NOT NULL AND o.superseded_by IS NULL THEN 'retried'
            END AS told,
            CASE WHEN n.finished_at IS NOT NULL THEN NULL
                 WHEN n.cached_from IS NOT NULL AND o.cached_from IS NULL THEN 'follows'
                 WHEN n.worker_id IS NULL AND o.worker_id IS NOT NULL THEN 'released'
                 WHEN n.worker_id IS DISTINCT FROM o.worker_id OR n.attempt <> o.attempt THEN 'claimed'
                 WHEN n.cached_from IS NULL AND o.cached_from IS NOT NULL THEN 'released'
                 WHEN n.state = 'waiting' AND o.state <> 'waiting' THEN 'waiting'
            END AS moved,
            CASE WHEN n.started_at IS NOT NULL AND o.started_at IS NULL AND o.state <> 'running' THEN n.started_at
                 WHEN n.state = 'running' AND o.state <> 'running' THEN clock_timestamp()
            END AS began_at,
            o.finished_at IS NULL AND n.finished_at IS NOT NULL AS ended
        FROM after n JOIN before o USING (node_id)
        WHERE (n.state, n.attempt, n.paused, n.to_kill) <> (o.state, o.attempt, o.paused, o.to_kill)
           OR (n.worker_id, n.superseded_by, n.cached_from)
              IS DISTINCT FROM (o.worker_id, o.superseded_by, o.cached_from))
    SELECT node_id, clock_timestamp(), of_worker, attempt, told::event_kind,
        CASE told WHEN 'paused' THEN left(exit_message, 200) WHEN 'retried' THEN superseded_by::text END
    FROM changed WHERE told IS NOT NULL
    UNION ALL
    SELECT node_id, clock_timestamp(), of_worker, attempt, moved::event_kind,
        CASE moved WHEN 'follows' THEN cached_from::text END
    FROM changed WHERE moved IS NOT NULL
    UNION ALL
    SELECT node_id, began_at, of_worker, attempt, 'started', NULL FROM changed WHERE began_at IS NOT NULL
    UNION ALL
    SELECT node_id, finished_at, of_worker, attempt,
        CASE WHEN cached_from IS NULL THEN state::text ELSE 'reused' END::event_kind,
        CASE WHEN cached_from IS NULL THEN said_of_end(exit_status, exit_message) ELSE cached_from::text END
    FROM changed WHERE ended;
    RETURN NULL;
END $$;
CREATE TRIGGER process_changes_noted AFTER UPDATE ON process REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_processes();

CREATE FUNCTION refuse_change_of_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed' USING ERRCODE = 'check_violation', CONSTRAINT = 'event_immutable';
END $$;
CREATE TRIGGER event_immutable BEFORE UPDATE ON event FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_event();

-- What code of a workflow has seen that is no result of a call, from 1: which of its calls had ended, or that it
-- was paused here. Going on from the record, it sees the same again.
CREATE TABLE decision (
    process_id bigint NOT NULL,
    number integer NOT NULL,
    value jsonb NOT NULL,
    PRIMARY KEY (process_id, number)
);

CREATE OR REPLACE FUNCTION delete_processes_of_nodes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM process USING gone WHERE process.node_id = gone.id;
    DELETE FROM event USING gone WHERE event.process_id = gone.id;
    DELETE FROM decision USING gone WHERE decision.process_id = gone.id;
    RETURN NULL;
END $$;

-- number: of a workflow's own reports, from 1, so that going on from the record repeats none.
ALTER TABLE log ADD COLUMN number integer;
CREATE UNIQUE INDEX log_number ON log (node_id, number) WHERE number IS NOT NULL;

-- last_node: the highest id of a node when the pack was promised. Calculations that came later are in no chunk that
-- may rely on it.
ALTER TABLE pack ADD COLUMN last_node bigint;

-- Without parameters a plan is made once a connection, whatever comes first, and custom plans are none: made while
-- there are few nodes, or for many links, it would read all nodes for each link from then on. By index it costs as
-- little for one link as for a hundred thousand.
ALTER FUNCTION check_ends_of_links() RESET plan_cache_mode;
ALTER FUNCTION check_ends_of_links() SET enable_hashjoin = off;
ALTER FUNCTION check_ends_of_links() SET enable_mergejoin = off;
ALTER FUNCTION check_ends_of_links() SET enable_seqscan = off;
ALTER FUNCTION check_nodes_of_processes() RESET plan_cache_mode;
ALTER FUNCTION check_nodes_of_processes() SET enable_hashjoin = off;
ALTER FUNCTION check_nodes_of_processes() SET enable_mergejoin = off;
ALTER FUNCTION check_nodes_of_processes() SET enable_seqscan = off;
