package configs

import (
	"maps"
	"reflect"
	"slices"
)

// The raw structs hold a spec as it was written: nil where a key is not there.
// The fields have the names of those of Guest that they become, and the order of
// examples/complete.toml; differences.go goes by both. A new key is added here,
// in a check of validate*.go, in Guest, and with a comment in
// examples/complete.toml.

type rawGuest struct {
	Name             *string      `toml:"name"`
	UUID             *string      `toml:"uuid"`
	CPUs             *int64       `toml:"cpus"`
	Topology         *rawTopology `toml:"topology"`
	CPUAffinity      []string     `toml:"cpu_affinity"`
	EmulatorAffinity *string      `toml:"emulator_affinity"`
	Memory           *sizeText    `toml:"memory"`
	Hugepages        any          `toml:"hugepages"` // a boolean or a size
	Balloon          *bool        `toml:"balloon"`
	TPM              *bool        `toml:"tpm"`
	Arch             *string      `toml:"arch"`
	Machine          *string      `toml:"machine"`
	Firmware         *string      `toml:"firmware"`
	SecureBoot       *bool        `toml:"secure_boot"`
	Display          *string      `toml:"display"`
	Accel            *string      `toml:"accel"`
	CPU              *string      `toml:"cpu"`
	QEMU             *string      `toml:"qemu"`
	QEMUArgs         []string     `toml:"qemu_args"`
	Group            *string      `toml:"group"`
	Autostart        *bool        `toml:"autostart"`
	Boot             *rawBoot     `toml:"boot"`
	Disks            []rawDisk    `toml:"disk"`
	NICs             []rawNIC     `toml:"nic"`

	Shares   []rawShare   `toml:"share"`
	Watchdog *rawWatchdog `toml:"watchdog"`

	CloudInit   *rawCloudInit   `toml:"cloud_init"`
	Credentials []rawCredential `toml:"credential"`

	Console *rawConsole `toml:"console"`
	Stop    *rawStop    `toml:"stop"`
	Restart *rawRestart `toml:"restart"`
	Ready   *rawReady   `toml:"ready"`
	Limits  *rawLimits  `toml:"limits"`
	Confine *rawConfine `toml:"confine"`

	// In fleets only, where raw structs are merged (fleet.go).
	From  *string  `toml:"from"`
	Count *int64   `toml:"count"`
	After []string `toml:"after"`
}

type rawBoot struct {
	Kernel  *string `toml:"kernel"`
	Initrd  *string `toml:"initrd"`
	Cmdline *string `toml:"cmdline"`
}

type rawDisk struct {
	Path       *string      `toml:"path"`
	Format     *string      `toml:"format"`
	Base       *string      `toml:"base"`
	BaseFormat *string      `toml:"base_format"`
	Size       *sizeText    `toml:"size"`
	Readonly   *bool        `toml:"readonly"`
	CDROM      *bool        `toml:"cdrom"`
	Bus        *string      `toml:"bus"`
	Serial     *string      `toml:"serial"`
	Cache      *string      `toml:"cache"`
	IO         *string      `toml:"io"`
	IOThread   *bool        `toml:"iothread"`
	Throttle   *rawThrottle `toml:"throttle"`
	Discard    *bool        `toml:"discard"`
	BootIndex  *int64       `toml:"boot_index"`
}

type rawThrottle struct {
	BPSTotal  *sizeText `toml:"bps_total"`
	BPSRead   *sizeText `toml:"bps_read"`
	BPSWrite  *sizeText `toml:"bps_write"`
	IOPSTotal *int64    `toml:"iops_total"`
	IOPSRead  *int64    `toml:"iops_read"`
	IOPSWrite *int64    `toml:"iops_write"`
}

type rawNIC struct {
	Parent       *string       `toml:"parent"`
	VLAN         *int64        `toml:"vlan"`
	Kind         *string       `toml:"kind"`
	Mode         *string       `toml:"mode"`
	MAC          *string       `toml:"mac"`
	MTU          *int64        `toml:"mtu"`
	Promisc      *bool         `toml:"promisc"`
	Sources      []string      `toml:"sources"`
	Multicast    *string       `toml:"multicast"`
	Trust        *string       `toml:"trust"`
	HostAccess   *bool         `toml:"host_access"`
	Addresses    []string      `toml:"addresses"`
	Gateways     []string      `toml:"gateways"`
	Nameservers  []string      `toml:"nameservers"`
	Pin          any           `toml:"pin"` // a boolean or a word
	Bandwidth    *rawBandwidth `toml:"bandwidth"`
	Model        *string       `toml:"model"`
	Queues       *int64        `toml:"queues"`
	Vhost        *string       `toml:"vhost"`
	TxQueueLen   *int64        `toml:"txqueuelen"`
	BcQueueLen   *int64        `toml:"bcqueuelen"`
	HostOffload  *bool         `toml:"host_offload"`
	GuestOffload *bool         `toml:"guest_offload"`
	BootIndex    *int64        `toml:"boot_index"`
}

type rawBandwidth struct {
	Inbound  *rateText `toml:"inbound"`
	Outbound *rateText `toml:"outbound"`
}

type rawTopology struct {
	Sockets *int64 `toml:"sockets"`
	Cores   *int64 `toml:"cores"`
	Threads *int64 `toml:"threads"`
}

type rawShare struct {
	Path     *string `toml:"path"`
	Tag      *string `toml:"tag"`
	Readonly *bool   `toml:"readonly"`
}

type rawWatchdog struct {
	Action *string `toml:"action"`
}

type rawCloudInit struct {
	Hostname      *string  `toml:"hostname"`
	Users         []string `toml:"users"`
	SSHKeys       []string `toml:"ssh_keys"`
	Packages      []string `toml:"packages"`
	UserData      *string  `toml:"user_data"`
	NetworkConfig *string  `toml:"network_config"`
}

type rawCredential struct {
	Name  *string `toml:"name"`
	Value *string `toml:"value"`
	File  *string `toml:"file"`
}

type rawConsole struct {
	LogSize *sizeText `toml:"log_size"`
}

type rawStop struct {
	Timeout     *spanText `toml:"timeout"`
	QuitTimeout *spanText `toml:"quit_timeout"`
}

type rawRestart struct {
	Policy   *string   `toml:"policy"`
	Delay    *spanText `toml:"delay"`
	MaxDelay *spanText `toml:"max_delay"`
	Limit    *int64    `toml:"limit"`
	Interval *spanText `toml:"interval"`
}

type rawReady struct {
	When    *string   `toml:"when"`
	Timeout *spanText `toml:"timeout"`
}

type rawLimits struct {
	Memory *sizeText `toml:"memory"` // or a word
	CPUs   any       `toml:"cpus"`   // a whole number or not
	Tasks  *int64    `toml:"tasks"`
}

type rawConfine struct {
	User       *bool `toml:"user"`
	Seccomp    *bool `toml:"seccomp"`
	Root       *bool `toml:"root"`
	Namespaces *bool `toml:"namespaces"`
	Landlock   *bool `toml:"landlock"`
	RLimits    *bool `toml:"rlimits"`
}

// Text with a meaning, so that a bare number in its place gets the right hint.
type (
	sizeText string // read by ParseSize
	spanText string // read by parseSpan
	rateText string // read by ParseRate
)

// decodeTable fills a raw struct from the table at path. The decoder's own way
// into structs would match names in any case and stop at the first wrong type.
func decodeTable(r *report, path string, table map[string]any, dst reflect.Value) {
	fields := fieldsOf(dst.Type())
	for _, name := range slices.Sorted(maps.Keys(table)) {
		i, ok := fields[name]
		if !ok {
			r.unknownKey(path, name, dst.Type())
			continue
		}
		decodeValue(r, joinKey(path, name), table[name], dst.Field(i))
	}
}

// fieldsOf returns the keys of a raw struct and the indexes of their fields.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		fields[t.Field(i).Tag.Get("toml")] = i
	}
	return fields
}

// decodeValue sets dst from a decoded value, or complains about its type and
// leaves dst as it is. A nil, which TOML does not have, is what unsets dst.
func decodeValue(r *report, path string, v any, dst reflect.Value) {
	if v == nil {
		dst.SetZero()
		return
	}
	switch dst.Kind() {
	case reflect.Interface:
		dst.Set(reflect.ValueOf(v)) // its check looks at the type
		return
	case reflect.Pointer:
		target := reflect.New(dst.Type().Elem())
		if !dst.IsNil() { // a table that is changed, and not read from a file
			target.Elem().Set(dst.Elem())
		}
		decodeValue(r, path, v, target.Elem())
		if !r.broken[path] {
			dst.Set(target)
		}
		return
	case reflect.Struct:
		if table, ok := v.(map[string]any); ok {
			decodeTable(r, path, table, dst)
			return
		}
	case reflect.Slice:
		if items, ok := elements(v); ok {
			dst.Set(reflect.MakeSlice(dst.Type(), len(items), len(items)))
			for i, item := range items {
				decodeValue(r, indexKey(path, i), item, dst.Index(i))
			}
			return
		}
	default:
		if got := reflect.ValueOf(v); got.Kind() == dst.Kind() {
			dst.Set(got.Convert(dst.Type()))
			return
		}
	}
	r.breakf(path, "%s", wrongType(path, v, dst.Type()))
}

// elements returns an array's values, in both of the decoder's forms.
func elements(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case []map[string]any:
		items := make([]any, len(v))
		for i := range v {
			items[i] = v[i]
		}
		return items, true
	}
	return nil, false
}
