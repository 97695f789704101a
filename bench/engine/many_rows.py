"""A database that looks as after years: millions of processes, made by the server itself."""

from __future__ import annotations

from grange.core.profile import Profile

#: Of the newest tenth of the processes, one of so many is a workflow that waits, and one is ready.
WAITING, READY = 9, 18

# Ids begin above those that are there. One of three is a workflow, and the two behind it are its calls; a
# tenth has a key. Without triggers: they would write two events for each.
_NODES = """
INSERT INTO node (id, uuid, kind, user_id, ctime, node_type, process_type, label, attributes)
SELECT n, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       (CASE WHEN n %% 3 = 0 THEN 'workflow' ELSE 'calculation' END)::node_kind, %(user)s,
       now() - (%(last)s - n) * interval '1 second',
       CASE WHEN n %% 3 = 0 THEN 'process.workflow.workfunction.WorkFunctionNode.'
            ELSE 'process.calculation.calcfunction.CalcFunctionNode.' END,
       'bench.step', '', '{"process_label": "step", "function_name": "step"}'
FROM generate_series(%(first)s, %(last)s) AS n
"""
_PROCESSES = """
INSERT INTO process (node_id, state, attempt, key, label, exit_status, exit_message, started_at, finished_at,
                     wall_s, workflow, ready, parent_id, sequence, open_children, queue_id)
SELECT n, state::process_state, 1, CASE WHEN n %% 10 = 1 THEN decode(md5(n::text), 'hex') END, 'step',
       CASE WHEN state = 'finished' THEN CASE WHEN n %% 100 = 1 THEN 310 ELSE 0 END END,
       CASE WHEN state = 'excepted' THEN 'ValueError: a stone' END,
       now() - (%(last)s - n) * interval '1 second',
       CASE WHEN state IN ('finished', 'excepted') THEN now() - (%(last)s - n) * interval '1 second' END, 0.5,
       n %% 3 = 0, ready, CASE WHEN n %% 3 > 0 THEN n - n %% 3 END, CASE WHEN n %% 3 > 0 THEN n %% 3 END,
       CASE WHEN state = 'waiting' THEN 1 ELSE 0 END, CASE WHEN n %% 3 > 0 THEN 1 END
FROM (SELECT n, CASE WHEN n > %(old)s AND n %% %(waiting)s = 0 THEN 'waiting'
                     WHEN n %% 500 = 1 THEN 'excepted' ELSE 'finished' END AS state,
             n > %(old)s AND n %% %(ready)s = 0 AS ready
      FROM generate_series(%(first)s, %(last)s) AS n) AS made
"""


def fill(profile: Profile, count: int) -> None:
    """Add so many processes with their nodes, most of them ended long ago."""
    user_id = profile.user_id
    with profile.transaction() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute("SELECT coalesce(max(id), 0) + 1 FROM node")
        (first,) = cursor.fetchone() or (1,)
        values = {
            "first": first,
            "last": first + count - 1,
            "old": first + count * 9 // 10,
            "user": user_id,
            "ready": READY,
            "waiting": WAITING,
        }
        cursor.execute(_NODES, values)
        cursor.execute(_PROCESSES, values)
        cursor.execute("SELECT setval('node_id', %s)", (first + count,))
    connection = profile.connect()
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE process")
            cursor.execute("VACUUM ANALYZE node")
            cursor.execute("CHECKPOINT")  # else it is us who write out what was filled in
    finally:
        connection.close()
