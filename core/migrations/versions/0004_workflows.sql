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
CREATE INDEX process_failed ON process (node_id) WHERE superseded_by IS NULL
    AND (state IN ('excepted', 'killed') OR state = 'finished' AND exit_status <> 0);

-- Queues are groups of the type 'queue': one for each computer, one for each host's own cores.

-- role: client, worker (of a daemon) or dispatcher. ended_at: when it was seen that its lock is gone.
ALTER TABLE worker ADD COLUMN role text NOT NULL DEFAULT 'client';
ALTER TABLE worker ADD COLUMN daemon_id integer;
ALTER TABLE worker ADD COLUMN ended_at timestamptz;
CREATE INDEX worker_alive ON worker (id) WHERE ended_at IS NULL;

-- A daemon: a supervisor on a host. It holds an advisory lock on the id for as long as it lives.
CREATE TABLE daemon (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host text NOT NULL,
    home text NOT NULL,
    pid integer NOT NULL,
    workers_wanted integer NOT NULL CHECK (workers_wanted >= 0),
    started_at timestamptz NOT NULL DEFAULT now(),
    stop_asked_at timestamptz,
    stopped_at timestamptz
);

-- While there is a row nobody works; at most one.
CREATE TABLE profile_lock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    reason text NOT NULL,
    by_whom text NOT NULL,
    locked_at timestamptz NOT NULL DEFAULT now()
);

-- What happened to processes, in order: rows are only ever added.
CREATE TABLE event (
    id bigint GENERATED ALWAYS AS IDENTITY,
    process_id bigint NOT NULL,
    time timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    attempt smallint,
    worker_id integer,
    detail text
);
CREATE INDEX event_process ON event (process_id, id);
CREATE INDEX event_time ON event USING brin (time);

-- What code of a workflow has seen that is no result of a call, from 1: which of its calls had ended, or that it
-- was paused here. Going on from the record, it sees the same again.
CREATE TABLE decision (
    process_id bigint NOT NULL,
    number integer NOT NULL,
    value jsonb NOT NULL,
    PRIMARY KEY (process_id, number)
);

-- number: of a workflow's own reports, from 1, so that going on from the record repeats none.
ALTER TABLE log ADD COLUMN number integer;
CREATE UNIQUE INDEX log_number ON log (node_id, number) WHERE number IS NOT NULL;
