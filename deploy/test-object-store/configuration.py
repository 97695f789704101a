"""The daemons' configuration. What is not Ceph's default makes it start in two seconds, not in sixteen."""

from __future__ import annotations

from layout import ObjectStore

#: Names and rights of those who have a key of their own.
KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "client.gateway": {"mon": "allow rw", "osd": "allow rwx"},
    "client.spare": {"mon": "allow rw", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}


def ceph_conf(store: ObjectStore) -> str:
    """ceph.conf of all of it."""
    server, first, last = store.server, *store.osd_ports
    return f"""\
[global]
fsid = {store.fsid}
mon host = [v2:{store.host}:{store.mon_port}]
mon initial members = a
public addr = {store.host}
cluster addr = {store.host}
ms bind ipv6 = false
ms bind port min = {first}
ms bind port max = {last}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {store.keyring}
run dir = {server}/run
# Paths of sockets would be too long in most folders.
admin socket =
log file = {store.logs}/$name.log
log max recent = 100
debug rocksdb = 1/1
client mount timeout = 30
# How often who waits for the OSD looks whether it is there: else five seconds.
objecter tick interval = 0.2
# One copy on one disk.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon pg warn min per osd = 0
# A disk that others have filled is no reason to stop.
mon data avail warn = 1
mon data avail crit = 1
mon osd nearfull ratio = 0.97
mon osd backfillfull ratio = 0.98
mon osd full ratio = 0.99
# Each pool that is made waits for several rounds of the monitors: nine seconds in all at one a second.
paxos propose interval = 0.02
paxos min wait = 0.01

[mon.a]
mon data = {server}/mon
mon cluster log file = {store.logs}/cluster.log

[osd.0]
osd data = {server}/osd
osd max object name len = 256
# Whoever changes a user or a bucket waits so long for a gateway that was killed.
osd client watch timeout = 3
osd class load list = *
osd class default list = *
bluestore block create = true
bluestore block size = {store.size}
bluestore fsck on mkfs = false
# Closing a device waits for one round of its poll, and starting closes ten.
bdev aio poll ms = 20
# A gigabyte of cache otherwise.
bluestore cache autotune = false
bluestore cache size = {64 << 20}
osd memory target = {896 << 20}

[client]
rgw thread pool size = 64
# Without tcp_nodelay a small GET takes 44 ms.
rgw data = {server}/run
rgw enable apis = s3, admin
rgw dns name = localhost
rgw enable usage log = false
rgw enable ops log = false
rgw run sync thread = false
rgw dynamic resharding = false
# Each of several waits for the others, and listens to nobody meanwhile.
rgw lc max worker = 1
# What was deleted is gone, and what is too much is noticed, soon.
rgw gc obj min wait = 60
rgw gc processor period = 60
rgw bucket quota ttl = 0
debug rgw = 0
{_gateway(store, "gateway")}{_gateway(store, "spare")}"""


def _gateway(store: ObjectStore, name: str) -> str:
    port, https_port = store.ports_of(name)
    tls = store.server / "tls"
    text = f"""
[client.{name}]
rgw frontends = beast endpoint={store.host}:{port} ssl_endpoint={store.host}:{https_port} \
ssl_certificate={tls}/server.pem ssl_private_key={tls}/server.key tcp_nodelay=1
"""
    if name == "spare":
        # Threads that find another gateway at this work do not listen to who stops them for ten seconds.
        text += "rgw enable lc threads = false\nrgw enable gc threads = false\n"
    return text
