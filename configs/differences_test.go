package configs

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// eachKey has two values for each key there is, as one would write them, the
// first of them the default where there is one, and what else the key needs.
var eachKey = []struct {
	key, before, after string
	needs              []string // "key = value"
}{
	{`name`, `"a"`, `"b"`, nil},
	{`uuid`, ``, `"3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90"`, nil},
	{`cpus`, `1`, `2`, []string{`nic[].queues = 1`}},
	{`topology.sockets`, `1`, `2`, []string{`cpus = 2`, `nic[].queues = 1`}},
	{`topology.cores`, `1`, `2`, []string{`cpus = 2`, `nic[].queues = 1`}},
	{`topology.threads`, `1`, `2`, []string{`cpus = 2`, `nic[].queues = 1`}},
	{`cpu_affinity`, ``, `["0-3,5"]`, nil},
	{`emulator_affinity`, ``, `"1"`, nil},
	{`memory`, `"1GiB"`, `"1536MiB"`, nil},
	{`hugepages`, ``, `"2MiB"`, []string{`balloon = false`}},
	{`balloon`, `true`, `false`, nil},
	{`tpm`, `false`, `true`, nil},
	{`arch`, ``, `"aarch64"`, nil},
	{`machine`, ``, `"pc"`, nil},
	{`firmware`, ``, `"uefi"`, nil},
	{`secure_boot`, `false`, `true`, []string{`firmware = "uefi"`}},
	{`display`, `"none"`, `"vnc"`, nil},
	{`accel`, `"auto"`, `"tcg"`, nil},
	{`cpu`, ``, `"max"`, nil},
	{`qemu`, ``, `"/bin/qemu"`, nil},
	{`qemu_args`, ``, `["-device", "a\"b"]`, nil},
	{`group`, ``, `"operators"`, nil},
	{`autostart`, `false`, `true`, nil},
	{`boot.kernel`, `"/k"`, `"/kernel"`, nil},
	{`boot.initrd`, ``, `"/i"`, nil},
	{`boot.cmdline`, ``, `"a=b"`, nil},
	{`disk[].path`, `"/a.qcow2"`, `"/b.qcow2"`, nil},
	{`disk[].format`, `"qcow2"`, `"raw"`, nil},
	{`disk[].base`, ``, `"/base.img"`, nil},
	{`disk[].base_format`, `"qcow2"`, `"raw"`, []string{`disk[].base = "/base.qcow2"`}},
	{`disk[].size`, ``, `"20GiB"`, nil},
	{`disk[].readonly`, `false`, `true`, nil},
	{`disk[].cdrom`, `false`, `true`, []string{`disk[].bus = "scsi"`, `disk[].readonly = true`}},
	{`disk[].bus`, `"virtio"`, `"scsi"`, nil},
	{`disk[].serial`, ``, `"web1-root"`, nil},
	{`disk[].io`, `"threads"`, `"io_uring"`, nil},
	{`disk[].iothread`, `false`, `true`, nil},
	{`disk[].throttle.bps_total`, ``, `"100MiB"`, nil},
	{`disk[].throttle.bps_read`, ``, `"100MiB"`, nil},
	{`disk[].throttle.bps_write`, `"10MiB"`, `"100MiB"`, nil},
	{`disk[].throttle.iops_total`, ``, `100`, nil},
	{`disk[].throttle.iops_read`, ``, `100`, nil},
	{`disk[].throttle.iops_write`, `10`, `100`, nil},
	{`disk[].cache`, `"writeback"`, `"none"`, nil},
	{`disk[].discard`, `false`, `true`, nil},
	{`disk[].boot_index`, ``, `1`, nil},
	{`nic[].parent`, `"eth0"`, `"eth1"`, nil},
	{`nic[].vlan`, ``, `100`, nil},
	{`nic[].kind`, `"macvtap"`, `"ipvtap"`, []string{`nic[].addresses = ["192.0.2.1"]`}},
	{`nic[].mode`, `"bridge"`, `"vepa"`, nil},
	{`nic[].mac`, ``, `"52:54:00:12:34:56"`, nil},
	{`nic[].mtu`, ``, `1400`, nil},
	{`nic[].promisc`, `true`, `false`, []string{`nic[].mode = "passthru"`}},
	{`nic[].sources`, `["52:54:00:00:00:01"]`, `["52:54:00:00:00:01", "52:54:00:00:00:02"]`, []string{`nic[].mode = "source"`}},
	{`nic[].multicast`, `"guest"`, `"off"`, nil},
	{`nic[].trust`, `"none"`, `"mac"`, nil},
	{`nic[].host_access`, `false`, `true`, nil},
	{`nic[].addresses`, ``, `["192.0.2.1", "2001:db8::1"]`, nil},
	{`nic[].pin`, `false`, `true`, []string{`nic[].addresses = ["192.0.2.1"]`}},
	{`nic[].model`, `"virtio-net-pci"`, `"e1000"`, nil},
	{`nic[].queues`, `1`, `4`, nil},
	{`nic[].vhost`, `"auto"`, `"off"`, nil},
	{`nic[].txqueuelen`, ``, `1000`, nil},
	{`nic[].bcqueuelen`, ``, `1000`, nil},
	{`nic[].host_offload`, `true`, `false`, nil},
	{`nic[].guest_offload`, `true`, `false`, nil},
	{`nic[].boot_index`, ``, `2`, nil},
	{`nic[].bandwidth.inbound`, ``, `"100mbit"`, nil},
	{`nic[].bandwidth.outbound`, `"1gbit"`, `"20mbit"`, nil},
	{`share[].path`, `"/src"`, `"/other"`, nil},
	{`share[].tag`, `"src"`, `"a.b"`, nil},
	{`share[].readonly`, `false`, `true`, nil},
	{`watchdog.action`, `"reset"`, `"pause"`, nil},
	{`nic[].gateways`, ``, `["192.0.2.1"]`, []string{`nic[].addresses = ["192.0.2.2/24"]`, `cloud_init.hostname = "a"`}},
	{`nic[].nameservers`, ``, `["192.0.2.1", "2001:db8::1"]`, []string{`cloud_init.hostname = "a"`}},
	{`cloud_init.hostname`, `"a"`, `"b.example.org"`, []string{`cloud_init.users = ["default"]`}},
	{`cloud_init.users`, `["default"]`, `["alice", "bob"]`, []string{`cloud_init.hostname = "a"`}},
	{`cloud_init.ssh_keys`, `["owner"]`, `["owner", "/keys.pub"]`, []string{`cloud_init.hostname = "a"`}},
	{`cloud_init.packages`, ``, `["nginx"]`, []string{`cloud_init.hostname = "a"`}},
	{`cloud_init.user_data`, ``, `"/user-data"`, []string{`cloud_init.hostname = "a"`}},
	{`cloud_init.network_config`, ``, `"/network"`, []string{`cloud_init.hostname = "a"`}},
	{`credential[].name`, `"a"`, `"a.b"`, []string{`credential[].value = "c"`}},
	{`credential[].value`, `"a"`, `"b"`, []string{`credential[].name = "c"`}},
	{`credential[].file`, `"/a"`, `"/b"`, []string{`credential[].name = "c"`}},
	{`console.log_size`, `"4MiB"`, `"0"`, nil},
	{`stop.timeout`, `"1m"`, `"1h30m"`, nil},
	{`stop.quit_timeout`, `"5s"`, `"500ms"`, nil},
	{`restart.policy`, `"no"`, `"always"`, nil},
	{`restart.delay`, `"1s"`, `"2s"`, []string{`restart.policy = "no"`}},
	{`restart.max_delay`, `"1m"`, `"1h"`, []string{`restart.policy = "no"`}},
	{`restart.limit`, `5`, `0`, []string{`restart.policy = "no"`}},
	{`restart.interval`, `"10m"`, `"1m30s"`, []string{`restart.policy = "no"`}},
	{`ready.when`, `"started"`, `"console:login: $"`, nil},
	{`ready.timeout`, `"5m"`, `"0s"`, nil},
	{`limits.memory`, ``, `"auto"`, nil},
	{`limits.cpus`, ``, `2.5`, nil},
	{`limits.tasks`, ``, `512`, nil},
	{`confine.user`, `true`, `false`, nil},
	{`confine.seccomp`, `true`, `false`, nil},
	{`confine.root`, `true`, `false`, nil},
	{`confine.namespaces`, `true`, `false`, nil},
	{`confine.landlock`, `true`, `false`, nil},
	{`confine.rlimits`, `true`, `false`, nil},
}

// specOf writes the least spec with some keys set, of which those of disks and
// NICs are "disk[].path".
func specOf(settings ...string) string {
	values := map[string]string{"name": `"a"`, "boot.kernel": `"/k"`, "disk[].path": `"/a.qcow2"`, "nic[].parent": `"eth0"`, "share[].path": `"/src"`, "share[].tag": `"src"`}
	for _, s := range settings {
		if key, value, ok := strings.Cut(s, " = "); ok {
			values[key] = value
		}
	}
	top, tables := "", ""
	for _, key := range slices.Sorted(maps.Keys(values)) { // those of one table stand together
		table, name, ok := strings.Cut(key, "[].")
		switch {
		case !ok:
			top += fmt.Sprintln(key, "=", values[key])
			continue
		case !strings.Contains(tables, "[["+table+"]]"):
			tables += "[[" + table + "]]\n"
		}
		tables += fmt.Sprintln(name, "=", values[key])
	}
	return top + tables
}

func mustParse(t *testing.T, spec string) *Guest {
	t.Helper()
	g, err := Parse("/specs/a.toml", []byte(spec))
	if err != nil {
		t.Fatalf("%v in\n%s", err, spec)
	}
	return g
}

// TestDifferencesOfEachKey changes each key there is, and wants to see that
// change in the words of the file, there and back.
func TestDifferencesOfEachKey(t *testing.T) {
	tested := map[string]bool{"from": true, "count": true, "after": true} // in fleets
	for _, tt := range eachKey {
		tested[tt.key] = true
		t.Run(tt.key, func(t *testing.T) {
			was := slices.Clone(tt.needs)
			if tt.before != "" {
				was = append(was, tt.key+" = "+tt.before)
			}
			before := mustParse(t, specOf(was...))
			after := mustParse(t, specOf(append(slices.Clone(tt.needs), tt.key+" = "+tt.after)...))
			want := []Difference{{strings.Replace(tt.key, "[]", "[0]", 1), tt.before, tt.after}}
			got := Differences(before, after)
			if tt.key == "nic[].kind" || tt.key == "disk[].base" { // others follow from it
				got = got[:1]
			}
			isOther := func(d Difference) bool { return d.Key != tt.key }
			if strings.HasPrefix(tt.key, "topology.") {
				got = slices.DeleteFunc(got, isOther)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
			got = Differences(after, before)
			if strings.HasPrefix(tt.key, "topology.") {
				got = slices.DeleteFunc(got, isOther)
			}
			if got[0].Before != tt.after || got[0].After != tt.before {
				t.Errorf("the way back: %+v", got)
			}
			if got := Differences(after, mustParse(t, specOf(append(slices.Clone(tt.needs), tt.key+" = "+tt.after)...))); got != nil {
				t.Errorf("of the same spec: %+v", got)
			}
		})
	}
	for _, key := range leafKeys(reflect.TypeFor[rawGuest]()) {
		if !tested[key] {
			t.Errorf("eachKey has nothing for %s", key)
		}
	}
}

// leafKeys returns the keys that have a value, and not a table.
func leafKeys(of reflect.Type) []string {
	keys := allKeys("", of)
	return slices.DeleteFunc(slices.Clone(keys), func(table string) bool {
		return slices.ContainsFunc(keys, func(key string) bool {
			return strings.HasPrefix(key, table+".") || strings.HasPrefix(key, table+"[].")
		})
	})
}

func TestDifferences(t *testing.T) {
	const base = "boot.kernel = \"/k\"\n[[nic]]\nparent = \"eth0\"\n"
	tests := []struct {
		name          string
		before, after string
		want          []Difference
	}{
		{"nothing", base, base, nil},
		{"lists without anything in them", base, "qemu_args = []\n" + base + "addresses = []\n", nil},
		{
			"a NIC more, by what is not the default", base, base + "[[nic]]\nparent = \"eth1\"\nmode = \"bridge\"\nmtu = 1400\n",
			[]Difference{{"nic[1].parent", "", `"eth1"`}, {"nic[1].mtu", "", "1400"}},
		},
		{
			"a disk less", "[[disk]]\npath = \"/a.img\"\nreadonly = true\n" + "[[nic]]\nparent = \"eth0\"\n", base,
			[]Difference{{"boot.kernel", "", `"/k"`}, {"disk[0].path", `"/a.img"`, ""}, {"disk[0].format", `"raw"`, ""}, {"disk[0].readonly", "true", ""}},
		},
		{
			"the order of the file", base,
			"cpus = 2\nmemory = \"2GiB\"\nboot.kernel = \"/l\"\nconfine.root = false\nstop.timeout = \"5s\"\n[[nic]]\nparent = \"eth1\"\nqueues = 1\n",
			[]Difference{
				{"cpus", "1", "2"}, {"memory", `"1GiB"`, `"2GiB"`}, {"boot.kernel", `"/k"`, `"/l"`}, {"nic[0].parent", `"eth0"`, `"eth1"`},
				{"stop.timeout", `"1m"`, `"5s"`}, {"confine.root", "true", "false"},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Differences(mustParse(t, tt.before), mustParse(t, tt.after))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOrderOfKeys holds the order of the raw structs, which is that of
// differences, against the complete example's.
func TestOrderOfKeys(t *testing.T) {
	lines := scan(completeExample(t)).lines
	last, before := 0, ""
	for _, key := range leafKeys(reflect.TypeFor[rawGuest]()) {
		n, ok := lines[strings.Replace(key, "[]", "[0]", 1)]
		if !ok {
			continue // in a later NIC, or in fleets
		}
		if n < last {
			t.Errorf("%s is on line %d of complete.toml, and %s on line %d", before, last, key, n)
		}
		last, before = n, key
	}
}
