# What the Linux guest does where it is there for a program: NAME says which,
# MIB how much the program works on, PAUSE how many seconds it rests between
# two rounds, FILL how many MiB of memory are filled beside and left alone.
# Says `PACER PROGRAM NAME ready` when all is filled and the first round is
# over, and then the number of each round that has ended.
name=$1 mib=$2 pause=$3 fill=$4
export PATH=/usr/bin:/bin LC_ALL=C
/bin/busybox --install -s /bin
mkdir -p /tmp
# The root may fill half of the memory only.
mount -t tmpfs -o size=90% tmpfs /tmp

random() { head -c "$(($1 << 20))" /dev/urandom; }
# A quarter of it is gone when compressed.
text() { random "$mib" | base64 | head -c "$((mib << 20))"; }
sql() { sqlite3 /tmp/database "$1"; }
benchmark() {
    redis-benchmark -s /tmp/redis -t set -d 1000 -r "$keys" -n "$1" -c 4 -P 8 -q >/dev/null
}

case $name in
redis)
    keys=$((mib * 1024))
    redis-server --port 0 --unixsocket /tmp/redis --save "" --appendonly no \
        --daemonize yes --logfile /tmp/redis.log
    until [ -S /tmp/redis ]; do sleep 0.1; done
    benchmark "$((keys * 2))"
    round() { benchmark 2000; }
    ;;
stress-ng)
    round() { stress-ng --quiet --vm 1 --vm-bytes "${mib}M" --vm-keep --timeout 1; }
    ;;
copy)
    random "$mib" >/tmp/from
    round() { cp /tmp/from /tmp/to; }
    ;;
sqlite)
    sql "create table rows (id integer primary key, content blob);
         with recursive ids (id) as
             (select 1 union all select id + 1 from ids where id < $mib * 2000)
         insert into rows select id, randomblob(500) from ids;"
    round() { sql "update rows set content = randomblob(500) where id % 50 = $number % 50"; }
    ;;
gzip)
    text >/tmp/from
    round() { gzip --stdout /tmp/from >/tmp/to; }
    ;;
sort)
    text >/tmp/from
    round() { sort -o /tmp/to /tmp/from; }
    ;;
esac

random "$fill" >/tmp/fill
number=0
while true; do
    if ! round; then
        echo "PACER PROGRAM $name failed"
        exec sleep 1000000
    fi
    [ "$number" != 0 ] || echo "PACER PROGRAM $name ready"
    number=$((number + 1))
    echo "PACER PROGRAM $name round $number"
    sleep "$pause"
done
