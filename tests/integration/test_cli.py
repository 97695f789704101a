"""The command line on a real profile."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grange.cli.entry import run
from grange.core import group, migrate, overview
from grange.core.campaign import Campaign
from grange.core.database import Cursor
from grange.core.profile import Profile
from grange.core.worker import lock_campaign

CALCFUNCTION = "process.calculation.calcfunction.CalcFunctionNode."
BINARY = bytes(range(256)) * 2000
CALLS = 30


@dataclass(frozen=True, slots=True)
class Filled:
    """A profile with a campaign of 30 calls.

    Call 3 failed, call 7 failed and was tried again, call 28 runs, call 29 waits, the others went well.
    """

    profile: Profile
    structure: int
    calculations: list[int]
    retried: int
    energies: list[int]
    folder: int


def _insert(cursor: Cursor, statement: str, values: tuple[Any, ...]) -> list[int]:
    cursor.execute(statement, values)
    return [row[0] for row in cursor.fetchall()]


def _nodes(
    cursor: Cursor, kind: str, node_type: str, attributes: list[dict[str, Any]], files: Any = None
) -> list[int]:
    return _insert(
        cursor,
        "INSERT INTO node (uuid, kind, user_id, node_type, attributes, repository_metadata, label) "
        "SELECT gen_random_uuid(), %s, (SELECT min(id) FROM \"user\"), %s, a, %s, 'label of it' "
        "FROM unnest(%s::jsonb[]) WITH ORDINALITY AS new (a, place) ORDER BY place RETURNING id",
        (kind, node_type, json.dumps(files or {}), [json.dumps(a) for a in attributes]),
    )


def _links(cursor: Cursor, sources: list[int], targets: list[int], link_type: str, labels: list[str]) -> None:
    cursor.execute(
        "INSERT INTO link SELECT s, t, %s, l FROM unnest(%s::bigint[], %s::bigint[], %s) AS new (s, t, l)",
        (link_type, sources, targets, labels),
    )


def _processes(cursor: Cursor, campaign_id: int, calculations: list[int], retried: int) -> None:
    cursor.execute(
        """
        INSERT INTO process (node_id, state, campaign_id, ordinal, key, label, exit_status, exit_message,
                             started_at, finished_at, wall_s, cpu_s, peak_memory_mb, host,
                             cached_from, superseded_by)
        SELECT id, state::process_state, %(campaign)s, ordinal, sha256(id::text::bytea), 'emt_energy',
               CASE WHEN state = 'finished' THEN CASE WHEN failed THEN 301 ELSE 0 END END,
               CASE WHEN failed THEN 'cell too small at strain 0.' || ordinal END,
               now(), CASE WHEN state = 'finished' THEN now() + interval '2 s' END,
               0.012, 0.011, 120, 'node1',
               CASE WHEN ordinal = 1 THEN %(first)s END, CASE WHEN ordinal = 7 AND failed THEN %(retried)s END
        FROM (
            SELECT id, place - 1 AS ordinal, place - 1 IN (3, 7) AS failed,
                   CASE place WHEN 29 THEN 'running' WHEN 30 THEN 'waiting' ELSE 'finished' END AS state
            FROM unnest(%(calculations)s::bigint[]) WITH ORDINALITY AS calls (id, place)
            UNION ALL SELECT %(retried)s, 7, false, 'finished'
        ) calls
        """,
        {"campaign": campaign_id, "first": calculations[0], "retried": retried, "calculations": calculations},
    )


@pytest.fixture
def filled(profile: Profile) -> Filled:
    with profile.transaction() as cursor:
        index = profile.index(cursor)
        (text_key, binary_key), rows = profile.repository.put([b"energy -17.1\n", BINARY], index)
        index.add(rows)
        [campaign_id] = _insert(
            cursor,
            'INSERT INTO "group" (label, type_string, user_id)'
            " VALUES ('fcc-eos', 'campaign', %s) RETURNING id",
            (1,),
        )
        kinds = [{"name": name, "symbols": [name], "weights": [1.0]} for name in ("Al", "Ni")]
        sites = [{"kind_name": name, "position": [0, 0, 0]} for name in ("Al", "Ni", "Ni", "Ni")]
        [structure] = _nodes(
            cursor, "data", "data.core.structure.StructureData.", [{"kinds": kinds, "sites": sites}]
        )
        strains = _nodes(cursor, "data", "data.core.float.Float.", [{"value": i / 100} for i in range(CALLS)])
        calculations = _nodes(cursor, "calculation", CALCFUNCTION, [{}] * CALLS)
        [retried] = _nodes(cursor, "calculation", CALCFUNCTION, [{}])
        _links(cursor, [structure] * CALLS, calculations, "input_calc", ["structure"] * CALLS)
        _links(cursor, strains, calculations, "input_calc", ["strain"] * CALLS)
        _processes(cursor, campaign_id, calculations, retried)
        energies = _nodes(
            cursor, "data", "data.core.float.Float.", [{"value": -17 - i / 7} for i in range(3)]
        )
        _links(cursor, calculations[:3], energies, "create", ["energy"] * 3)
        files = {"o": {"out": {"o": {"scf.txt": {"k": text_key}}}, "density.bin": {"k": binary_key}}}
        [folder] = _nodes(cursor, "data", "data.core.folder.FolderData.", [{}], files)
        _links(cursor, calculations[:1], [folder], "create", ["retrieved"])
    return Filled(profile, structure, calculations, retried, energies, folder)


Say = Callable[..., str]


@pytest.fixture
def say(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command of grange that must succeed; returns its standard output."""

    def run_it(*words: object) -> str:
        status = run(["--home", str(filled.profile.home), *map(str, words)])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return run_it


@pytest.fixture
def refused(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command of grange that must fail; returns the lines of its standard error."""

    def run_it(*words: object) -> list[str]:
        assert run(["--home", str(filled.profile.home), *map(str, words)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        return said.err.splitlines()

    return run_it


def _process(filled: Filled, *words: object, **kwargs: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "grange", "--home", str(filled.profile.home), *map(str, words)]
    return subprocess.Popen(command, **kwargs)


# ---------------------------------------------------------------- status


def test_status(filled: Filled, say: Say) -> None:
    (filled.profile.spool / "campaign-1" / "chunk").mkdir(parents=True)
    (filled.profile.spool / "campaign-2").mkdir()
    text = say("status")
    assert "spool      1 folder of campaigns" in text
    assert str(filled.profile.home) in text
    assert "processes  31: 27 ok · 2 failed · 1 running · 1 waiting" in text
    assert "fcc-eos             28 of 30" in text
    found = json.loads(say("status", "--json"))
    assert found["set_up"] is True
    assert found["totals"]["nodes"] == 1 + 2 * CALLS + 1 + 3 + 1
    assert found["totals"]["exact"] is True
    assert (found["totals"]["blobs"], found["totals"]["content_bytes"]) == (2, 13 + len(BINARY))
    [campaign] = found["campaigns_under_way"]
    assert campaign["outcomes"] == {"ok": 27, "failed": 1, "running": 1, "waiting": 1}


# ---------------------------------------------------------------- processes


def test_the_newest_processes(filled: Filled, say: Say) -> None:
    found = [json.loads(line) for line in say("process", "list", "--limit", 3, "--json").splitlines()]
    assert [row["id"] for row in found] == [filled.retried, *reversed(filled.calculations[-2:])]
    assert found[0]["ordinal"] == 7
    assert found[1]["state"] == "waiting"
    assert found[0]["started_at"].endswith("Z")


def test_how_many_more_there_are(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(filled.profile.home), "process", "list", "--limit", "5"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6
    assert said.err == "26 more processes; --limit N or --all shows them\n"
    assert run(["--home", str(filled.profile.home), "process", "list", "--all"]) == 0
    said = capsys.readouterr()
    assert (len(said.out.splitlines()), said.err) == (32, "")


@pytest.mark.parametrize(
    ("words", "count"),
    [(["--failed"], 1), (["-S", "failed"], 2), (["-S", "finished"], 29),
     (["-S", "running", "-S", "waiting"], 2),
     (["--campaign", "fcc-eos", "--failed"], 1), (["-S", "killed"], 0)],
    ids=str,
)  # fmt: skip
def test_filters_of_processes(words: list[str], count: int, say: Say) -> None:
    assert len(say("process", "list", "--all", "--json", *words).splitlines()) == count


def test_pages_join(filled: Filled, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.cli.listing._PAGE", 7)
    found = [json.loads(line)["id"] for line in say("process", "list", "--all", "--json").splitlines()]
    assert found == [filled.retried, *reversed(filled.calculations)]
    assert len(say("process", "list", "--limit", "9", "--json").splitlines()) == 9


def test_a_process(filled: Filled, say: Say) -> None:
    text = say("process", "show", filled.calculations[3])
    assert text.startswith(f"emt_energy ({filled.calculations[3]})  failed 301\n")
    for part in (
        "cell too small at strain 0.3",
        "fcc-eos, call 3",
        "AlNi3 · 4 sites",
        "0.03",
        "120 MiB",
        "node1",
    ):
        assert part in text
    assert "tried again" not in text
    assert f"tried again as  {filled.retried}" in say("process", "show", filled.calculations[7])
    found = json.loads(say("process", "show", filled.calculations[0], "--json"))
    assert found["process"]["exit_status"] == 0
    assert {link["link_label"] for link in found["arriving"]["shown"]} == {"structure", "strain"}
    assert {link["link_label"] for link in found["leaving"]["shown"]} == {"energy", "retrieved"}


def test_a_process_has_many_names(filled: Filled, say: Say) -> None:
    node_id = filled.calculations[5]
    uuid = json.loads(say("process", "show", node_id, "--json"))["node"]["uuid"]
    for name in (uuid, uuid.upper(), uuid.replace("-", ""), uuid[:13], "fcc-eos/5"):
        assert json.loads(say("process", "show", name, "--json"))["node"]["id"] == node_id
    assert json.loads(say("process", "show", "fcc-eos/7", "--json"))["node"]["id"] == filled.retried


def test_names_that_mean_nothing(filled: Filled, refused: Callable[..., list[str]]) -> None:
    assert refused("process", "show", 10**17)[0] == f"error: no node has the id {10**17}"
    assert "expected an id, a uuid" in refused("process", "show", 10**40)[0]
    assert "expected an id, a uuid" in refused("process", "show", "abc")[0]
    assert refused("process", "show", "ffff-ff")[0] == "error: no node has a uuid that begins with ffff-ff"
    assert "has no call number 99" in refused("process", "show", "fcc-eos/99")[0]
    lines = refused("process", "show", filled.structure)
    assert lines == [
        f"error: node {filled.structure} is data, not a process",
        f"`grange node show {filled.structure}` shows it",
    ]
    assert "did you mean 'fcc-eos'?" in refused("process", "list", "--campaign", "fcc_eos")[0]


# ---------------------------------------------------------------- nodes


@pytest.mark.parametrize(
    ("node_type", "count"),
    [("data", 1 + CALLS + 3 + 1), ("calculation", CALLS + 1), ("Float", CALLS + 3), ("float", CALLS + 3),
     ("data.core.structure", 1), ("StructureData.", 1), ("workflow", 0), ("lo", 0)],
)  # fmt: skip
def test_types_of_nodes(node_type: str, count: int, say: Say) -> None:
    assert len(say("node", "list", "--type", node_type, "--all", "--json").splitlines()) == count


def test_nodes(filled: Filled, say: Say) -> None:
    text = say("node", "list", "--limit", 5)
    assert "FolderData" in text
    assert "-17.142857" in text
    text = say("node", "show", filled.structure)
    assert "AlNi3 · 4 sites" in text
    assert '"kind_name": "Al"' in text
    assert f"… {CALLS - 20} more; --json lists all" in text
    found = json.loads(say("node", "show", filled.structure, "--json"))
    assert len(found["leaving"]["shown"]) == found["leaving"]["totals"]["input_calc"] == CALLS


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("words", [["process", "list"], ["node", "list"], ["campaign", "list"]], ids=" ".join)
def test_lists_fit_the_terminal(
    words: list[str], width: int, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, say(*words).splitlines())) <= width


def test_files(filled: Filled, say: Say) -> None:
    found = [json.loads(line) for line in say("node", "files", filled.folder, "--json").splitlines()]
    assert [(file["path"], file["size"]) for file in found] == [
        ("density.bin", len(BINARY)),
        ("out/scf.txt", 13),
    ]
    assert "512 kB" in say("node", "files", filled.folder)
    assert "has no files" in say("node", "files", filled.structure)


def test_cat_writes_the_bytes(filled: Filled) -> None:
    for path, content in (("density.bin", BINARY), ("out/scf.txt", b"energy -17.1\n")):
        with _process(filled, "node", "cat", filled.folder, path, stdout=subprocess.PIPE) as child:
            assert child.communicate()[0] == content
        assert child.returncode == 0


def test_cat_refuses_what_is_no_file(filled: Filled, refused: Callable[..., list[str]]) -> None:
    lines = refused("node", "cat", filled.folder, "scf.txt")
    assert lines[0] == f"error: node {filled.folder} has no file 'scf.txt'"
    assert lines[1] == "its files: density.bin, out/scf.txt"
    assert "say which" in refused("node", "cat", filled.folder)[0]
    assert "has no files" in refused("node", "cat", filled.structure)[0]


def test_cat_spares_the_terminal(filled: Filled) -> None:
    ours, theirs = pty.openpty()
    with _process(
        filled, "node", "cat", filled.folder, "density.bin", stdout=theirs, stderr=subprocess.PIPE
    ) as child:
        said = child.communicate()[1].decode()
    assert child.returncode == 1
    assert "error: density.bin (512 kB) is not text" in said
    assert "> FILE" in said
    with _process(filled, "node", "cat", filled.folder, "out/scf.txt", stdout=theirs) as child:
        assert child.wait() == 0
    assert os.read(ours, 100) == b"energy -17.1\r\n"
    os.close(ours)
    os.close(theirs)


def test_colours_are_for_terminals_that_want_them(filled: Filled) -> None:
    for variables, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        environment = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **variables}
        with _process(filled, "process", "list", "-n", 1, stdout=theirs, env=environment) as child:
            assert child.wait() == 0
        assert (b"\x1b[" in os.read(ours, 10_000)) is colored
        os.close(ours)
        os.close(theirs)


def test_a_reader_that_leaves_is_no_error(filled: Filled) -> None:
    with _process(
        filled, "node", "cat", filled.folder, "density.bin", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        child.wait()


# ---------------------------------------------------------------- campaigns


def test_campaigns(filled: Filled, say: Say) -> None:
    assert "27 ok · 1 failed · 1 running · 1 waiting" in say("campaign", "list")
    text = say("campaign", "show", "fcc-eos")
    for part in (
        "calls               30",
        "1 result of equal calls",
        "failed 301  cell too small",
        "calls/s",
    ):
        assert part in text
    found = json.loads(say("campaign", "show", "fcc-eos", "--json"))
    assert found["campaign"]["cached"] == 1
    assert found["rate_per_s"] == pytest.approx((28 - 1) / 2)
    assert found["failures"] == [
        {"state": "finished", "exit_status": 301, "message": "cell too small at strain 0.3", "count": 1,
         "example_id": filled.calculations[3]}
    ]  # fmt: skip


def test_a_campaign_tells_where_it_runs_and_who_runs_it(filled: Filled, say: Say) -> None:
    profile = filled.profile
    with profile.transaction() as cursor:
        (id_,) = [one.id for one in overview.campaigns(cursor) if one.name == "fcc-eos"]
        group.set_note(cursor, id_, "executor", "lumi")
    assert "runs on             lumi" in say("campaign", "show", "fcc-eos")
    nobody = "run by              nobody now; grange campaign run fcc-eos goes on with it"
    text = say("campaign", "show", "fcc-eos")
    assert nobody in text
    assert "what was sent" not in text
    chunk = profile.spool / f"campaign-{id_}@lumi" / "run-1" / "chunk-000001"
    chunk.mkdir(parents=True)
    (chunk / "sent").touch()
    assert f"{nobody}, and what was sent to lumi goes on there" in say("campaign", "show", "fcc-eos")
    profile.worker_id  # noqa: B018 - registers this process
    lock_campaign(profile.connection, id_)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"run by              {me}" in say("campaign", "show", "fcc-eos")
    assert me in say("status")
    (line,) = [json.loads(line) for line in say("campaign", "list", "--json").splitlines()]
    assert (line["computer"], line["run_by"]) == ("lumi", me)


def test_failures_that_differ_in_numbers_are_of_one_kind(filled: Filled, say: Say) -> None:
    with filled.profile.transaction() as cursor:
        cursor.execute(
            "UPDATE process SET superseded_by = NULL WHERE node_id = %s", (filled.calculations[7],)
        )
    [kind] = json.loads(say("campaign", "show", "fcc-eos", "--json"))["failures"]
    assert (kind["count"], kind["message"]) == (2, "cell too small at strain 0.3")


def test_failures(filled: Filled, say: Say) -> None:
    [row] = [json.loads(line) for line in say("campaign", "failures", "fcc-eos", "--json").splitlines()]
    assert row["id"] == filled.calculations[3]
    assert "cell too small at strain 0.3" in say("campaign", "failures", "fcc-eos")


@pytest.mark.parametrize("command", ["show", "run", "retry", "failures", "results"])
def test_a_campaign_that_is_not_there_is_not_made(
    command: str, filled: Filled, refused: Callable[..., list[str]]
) -> None:
    assert refused("campaign", command, "other")[0] == "error: there is no campaign 'other'"
    with filled.profile.transaction() as cursor:
        cursor.execute('SELECT count(*) FROM "group"')
        assert cursor.fetchone() == (1,)


# ---------------------------------------------------------------- graph


def test_a_graph_is_written_by_the_ending(filled: Filled, say: Say, tmp_path: Path) -> None:
    target = tmp_path / "origin.svg"
    text = say("graph", filled.energies[0], "-o", target)
    assert text == f"{target}: 4 nodes, 3 links\n"
    assert target.read_bytes().startswith(b"<?xml")
    png = tmp_path / "origin.PNG"
    say("graph", "fcc-eos/0", "-o", png)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_graph_without_a_file(
    filled: Filled, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node_id = filled.energies[0]
    assert say("graph", node_id).startswith(f"grange-{node_id}.svg: ")
    assert (tmp_path / f"grange-{node_id}.svg").exists()
    assert say("graph", node_id, "--format", "mermaid").startswith("flowchart TD\n")
    assert len(list(tmp_path.glob("grange-*"))) == 1, "text goes to standard output"


def test_a_graph_as_json(filled: Filled, say: Say) -> None:
    found = json.loads(
        say("graph", filled.structure, "--format", "json", "--direction", "down", "--depth", "1")
    )
    assert found["roots"] == [filled.structure]
    assert len(found["nodes"]) == 9
    assert found["hidden"] == [{"node_id": filled.structure, "side": "down", "count": CALLS - 8}]


def test_graphs_that_cannot_be_drawn(
    filled: Filled, refused: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not tell the format" in refused("graph", filled.structure, "-o", tmp_path / "x.bmp")[0]
    lines = refused("graph", filled.structure, "-o", tmp_path / "absent" / "x.svg")
    assert "No such file or directory" in lines[0]
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = refused("graph", filled.structure, "-o", tmp_path / "x.svg")
    assert lines[0] == "error: the program `dot`, which draws graphs, is not on PATH"
    assert "apt-get install graphviz" in lines[1]
    assert not (tmp_path / "x.svg").exists()


# ---------------------------------------------------------------- profile and database


def test_profile(filled: Filled, say: Say) -> None:
    assert say("profile", "path") == f"{filled.profile.home}\n"
    found = json.loads(say("profile", "show", "--json"))
    assert found["home"] == str(filled.profile.home)
    assert found["store"] == "store"


def test_a_database_of_its_own_is_not_stopped(
    filled: Filled, say: Say, refused: Callable[..., list[str]]
) -> None:
    assert "PostgreSQL" in say("database", "start")
    assert "a server of its own" in refused("database", "stop")[0]


def test_the_tables_are_brought_up_to_date(say: Say) -> None:
    assert say("database", "migrate") == f"the tables are those of {migrate.revisions()[-1]}\n"


# ---------------------------------------------------------------- a campaign from its record to its results


def halved(x: int) -> float:
    """What the calls below run."""
    if x == 3:
        raise ValueError("three is odd")
    return x / 2


def test_a_recorded_campaign_is_run_and_its_results_taken_out(
    profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> str:
        assert run(["--home", str(profile.home), *map(str, words)]) == 0
        return capsys.readouterr().out

    campaign = Campaign("halves", profile)
    campaign.map(halved, x=range(6))
    campaign.submit()
    assert "6 created" in said("campaign", "list")
    assert said("campaign", "run", "halves") == "halves: 5 ok · 1 excepted\n"
    rows = [json.loads(line) for line in said("campaign", "results", "halves", "--json").splitlines()]
    assert [row["result"] for row in rows] == [0, 0.5, 1, None, 2, 2.5]
    assert "ValueError: three is odd" in said("campaign", "results", "halves")
    assert said("campaign", "results", "halves", "--csv", "-").splitlines()[2].endswith(",1,0.5,finished,0,")
    said("campaign", "results", "halves", "--parquet", tmp_path / "halves.parquet")
    assert (tmp_path / "halves.parquet").read_bytes()[:4] == b"PAR1"
    assert said("campaign", "retry", "halves").startswith("1 call will be tried again")
    assert said("campaign", "retry", "halves") == "nothing to try again in halves\n"
    assert said("campaign", "run", "halves") == "halves: 5 ok · 1 excepted\n"
    failed = json.loads(said("process", "show", "halves/3", "--json"))
    assert failed["process"]["state"] == "excepted"
    assert failed["node"]["id"] > rows[3]["process"]
