#!/bin/sh
# The programs that the tests and examples run for real: xtb, Graphviz, Charliecloud, Open MPI, Environment Modules, and
# Slurm, munge and OpenSSH for the test cluster (deploy/test-cluster), Ceph's S3 gateway for the test object store
# (deploy/test-object-store) and a false clock for its clients; from Debian's or Ubuntu's packages. None of their
# services is left running or set to start with the machine: the tests start their own.
set -eu
missing=
# Ordinary users have no sbin on their PATH.
PATH=$PATH:/usr/sbin:/sbin
lacks() {
    command -v "$1" >/dev/null 2>&1 && return
    case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}
lacks xtb xtb
lacks dot graphviz
lacks ch-run charliecloud
lacks mpirun openmpi-bin
[ -e /usr/share/modules/init/bash ] || missing="$missing environment-modules"
for program in slurmctld slurmd sbatch; do lacks $program slurm-wlm; done
lacks munged munge
lacks sshd openssh-server
lacks ssh openssh-client
for program in radosgw ceph-mon ceph-osd openssl; do lacks $program $program; done
# It comes with all of them.
lacks radosgw-admin ceph-common
lacks faketime faketime
[ -n "$missing" ] || exit 0
# Root, or a user whose sudo asks for no password (as continuous integration has).
if [ "$(id -u)" = 0 ]; then sudo=
elif sudo -n true 2>/dev/null; then sudo="sudo"
else sudo=none; fi
if [ "$sudo" != none ] && command -v apt-get >/dev/null; then
    echo "Installing$missing ..."
    log=$(mktemp)
    policy=/usr/sbin/policy-rc.d
    ours=
    # shellcheck disable=SC2317
    clean_up() {
        rm -f "$log"
        [ -z "$ours" ] || $sudo rm -f "$policy"
    }
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    # Debian's way to say that packages may not start services while they are installed.
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
        $sudo chmod 755 "$policy"
    fi
    # And with systemd they would start with the machine: those that come now must not.
    new=
    for unit in ssh.service ssh.socket munge.service slurmctld.service slurmd.service \
        ceph.target ceph-mon.target ceph-osd.target ceph-radosgw.target ceph-crash.service; do
        [ -e "/lib/systemd/system/$unit" ] || new="$new $unit"
    done
    # shellcheck disable=SC2086
    if { $sudo apt-get update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing; } >"$log" 2>&1
    then
        for unit in $new; do
            [ ! -e "/lib/systemd/system/$unit" ] || ! command -v systemctl >/dev/null ||
                $sudo systemctl --quiet disable "$unit" >>"$log" 2>&1 || cat "$log" >&2
        done
        exit 0
    fi
    cat "$log" >&2
fi
echo "The tests need these programs:$missing. As root:" >&2
echo "    apt-get install --no-install-recommends$missing" >&2
exit 1
