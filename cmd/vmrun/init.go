package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/launcher"
)

// initOptions are the words of vmrun init.
type initOptions struct {
	image, parent, user string
	memory, size        string
	cpus                int
}

func (a *app) initCmd() *cobra.Command {
	var opts initOptions
	cmd := &cobra.Command{
		Use:   "init NAME --image FILE [flags]",
		Short: "Write a spec for a guest from an image",
		Long: `Write a spec for a guest from an image.

It writes NAME.toml in the current directory, with comments, and overwrites nothing.
FILE is a cloud image of a distribution, qcow2 or raw, which is only read and needs
cloud-init in it; or the ISO image of an installer. The guest gets an address by
DHCP, a user of your name, and your public keys (~/.ssh/*.pub, or else those that may
log in as you here), which are written into the spec.`,
		Example: `  vmrun init web1 --image debian-12-genericcloud-amd64.qcow2 --parent eth0
  vmrun start web1.toml`,
		GroupID:           "help",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.initSpec(cmd, args[0], opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.image, "image", "", "the image `FILE`")
	f.StringVar(&opts.parent, "parent", defaultParent(), "the host's `NIC` that the guest's sits on; without it that of the default route")
	f.StringVar(&opts.user, "user", "", "the user to be made in the guest; your name without it")
	f.StringVar(&opts.memory, "memory", "2GiB", "the guest's memory")
	f.StringVar(&opts.size, "size", "20GiB", "the size of its disk")
	f.IntVar(&opts.cpus, "cpus", 2, "its virtual CPUs")
	f.Lookup("parent").DefValue = "" // another on each host
	return cmd
}

// initSpec writes the spec, and says what comes next.
func (a *app) initSpec(cmd *cobra.Command, name string, opts initOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	if opts.image == "" {
		return usageError{errors.New("from which image? Name the file with --image")}
	}
	if opts.parent == "" {
		return usageError{errors.New("which NIC? The host has no default route to go by: name one with --parent (ip link lists them)")}
	}
	path := name + ".toml"
	text, err := specText(path, opts)
	if err != nil {
		return err
	}
	g, err := configs.Parse(path, []byte(text))
	if err != nil {
		return usageError{fmt.Errorf("the spec would be wrong: %w", err)}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already, and is left as it is: remove it, or choose another name", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	say("%s: written", path)
	if g.CloudInit.Hostname != "" && len(g.CloudInit.SSHKeys) == 0 {
		warn("no public key is in your ~/.ssh (%s), so that nobody can log in: give the path of one in ssh_keys in %s; ssh-keygen makes one", sshDir(caller()), path)
	}
	if _, err := launcher.PlanFor(cmd.Context(), g, a.runDir, launcher.PlanOptions{}); err != nil {
		warn("it does not fit this host as it is: %v", err)
		return nil
	}
	say("next: vmrun start %s", path)
	return nil
}

// specText is the spec for the file at path.
func specText(path string, opts initOptions) (string, error) {
	image, err := imageOf(opts.image)
	if err != nil {
		return "", usageError{err}
	}
	size, err := configs.ParseSize(opts.size)
	if err != nil {
		return "", usageError{fmt.Errorf("--size: %w", err)}
	}
	view := struct {
		initOptions
		Name, File, Image, Format string
		ISO                       bool
		Size                      configs.Size
		User                      string
		Keys                      []string
	}{initOptions: opts, Name: strings.TrimSuffix(path, ".toml"), File: path, Image: image.path, Format: image.format, ISO: image.iso, Size: max(size, image.size)}
	view.User, view.Keys = whoAmI(opts.user)
	var b bytes.Buffer
	err = initTemplate.Execute(&b, view)
	return b.String(), err
}

func (o initOptions) Parent() string { return o.parent }
func (o initOptions) CPUs() int      { return o.cpus }
func (o initOptions) Memory() string { return o.memory }

// Text in quotes is TOML's when it is Go's, but for what is not printed, which is in no
// name here.
var initTemplate = template.Must(template.New("spec").Parse(`# {{.Name}}, written by vmrun init. "man vmrun.toml" tells of every key, and
# "vmrun check {{.File}}" looks this file over when it was changed.
cpus   = {{.CPUs}}
memory = {{printf "%q" .Memory}}
{{if .ISO}}
# The screen, for the installer: vmrun vnc {{.Name}}. Later it can go.
display = "vnc"

# An empty disk, made beside this file at the first start. As long as nothing boots from
# it the firmware goes on to the next.
[[disk]]
path = "{{.Name}}.qcow2"
size = "{{.Size}}"
boot_index = 0

# The installer. Remove it when it has done its work.
[[disk]]
path  = {{printf "%q" .Image}}
cdrom = true
boot_index = 1
{{else}}
# What the guest writes goes into {{.Name}}.qcow2 beside this file, which is made at the
# first start. The image below it is only read: other guests can have it too, and it
# has to stay where it is.
[[disk]]
path = "{{.Name}}.qcow2"
base = {{printf "%q" .Image}}
{{- if .Format}}
base_format = "{{.Format}}"
{{- end}}
size = "{{.Size}}"
discard = true
{{end}}
# A NIC with a MAC of its own on the network of {{.Parent}}.
[[nic]]
parent = "{{.Parent}}"
# This host and the guest reach each other.
host_access = true
{{- if not .ISO}}
# Its address comes by DHCP. Without a DHCP server, or for one that stays:
# addresses   = ["192.0.2.10/24"]
# gateways    = ["192.0.2.1"]
# nameservers = ["192.0.2.1"]

# What cloud-init in the guest does when it boots: its name is {{.Name}}, and this user
# can log in with one of these keys, and do everything with sudo.
[cloud_init]
users    = ["{{.User}}"]
{{- if .Keys}}
ssh_keys = [
{{- range .Keys}}
  {{printf "%q" .}},
{{- end}}
]
{{- else}}
ssh_keys = [] # the path of a .pub file, or its line
{{- end}}
# packages  = ["nginx"]
# user_data = "user-data.yaml"
{{- end}}
`))

// baseImage is what init has to know of one.
type baseImage struct {
	path   string // as it is in the spec
	format string // where the name does not tell it
	iso    bool
	size   configs.Size
}

// imageOf looks at a new image, which no guest has had yet, so that its first bytes can
// be believed.
func imageOf(path string) (baseImage, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // which waits for nobody at the other end of a pipe
	if err != nil {
		return baseImage{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return baseImage{}, err
	}
	i := baseImage{path: path, size: (configs.Size(info.Size()) + 511) / 512 * 512}
	if filepath.Dir(path) != "." {
		if i.path, err = filepath.Abs(path); err != nil {
			return baseImage{}, err
		}
	}
	var head [32]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return baseImage{}, fmt.Errorf("%s is too short for an image", path)
	}
	var volume [5]byte // ECMA-119, 8.1
	_, volumeErr := f.ReadAt(volume[:], 0x8001)
	switch ext := filepath.Ext(path); {
	case string(head[:4]) == "QFI\xfb":
		i.size = configs.Size(binary.BigEndian.Uint64(head[24:])) // docs/interop/qcow2.txt
		if ext != ".qcow2" {
			i.format = "qcow2"
		}
	case bytes.Equal(head[:3], []byte("\x1f\x8b\x08")) || string(head[1:6]) == "7zXZ\x00":
		return baseImage{}, fmt.Errorf("%s is compressed: unpack it first", path)
	case ext == ".iso" && volumeErr == nil && string(volume[:]) == "CD001":
		i.iso = true
		i.size = 0
	case ext != ".img" && ext != ".raw":
		i.format = "raw"
	}
	return i, nil
}

// defaultParent is the link of the default route, "" for none (proc(5), net/route).
func defaultParent() string {
	data, _ := os.ReadFile("/proc/net/route")
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 1 && words[1] == "00000000" {
			return words[0]
		}
	}
	return ""
}

// caller is whoever has typed this, under sudo too, or nil.
func caller() *user.User {
	me, err := user.Lookup(os.Getenv("SUDO_USER"))
	if err != nil || os.Geteuid() != 0 {
		me, _ = user.Current()
	}
	return me
}

// sshDir is where ssh(1) looks for somebody's keys, whatever HOME says.
func sshDir(who *user.User) string {
	if who == nil {
		return ".ssh"
	}
	return filepath.Join(who.HomeDir, ".ssh")
}

// whoAmI is the name for the user in the guest, and the public keys of whoever has
// typed this: those in ~/.ssh, or else those that open this host.
func whoAmI(wanted string) (name string, keys []string) {
	me := caller()
	if me == nil {
		return wanted, nil
	}
	if name = wanted; name == "" {
		name = me.Username
	}
	if name == "root" {
		name = "vmrun" // most images let nobody in as root
	}
	paths, _ := filepath.Glob(filepath.Join(sshDir(me), "*.pub"))
	for _, path := range append(paths, filepath.Join(sshDir(me), "authorized_keys")) {
		if len(keys) > 0 && !strings.HasSuffix(path, ".pub") {
			break
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
			if key := strings.TrimSpace(lines.Text()); configs.CheckSSHKey(key) == nil && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return name, keys
}
