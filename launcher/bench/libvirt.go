package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"

	"golang.org/x/sys/unix"
)

// domain is a guest as libvirt wants it told (libvirt.org/formatdomain.html), with
// the hardware of machine. What libvirt has no word for goes to QEMU as it is: the
// pvpanic device on PCI, and the MTU that the guest is told.
var domain = template.Must(template.New("domain").Parse(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{{.Name}}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
<os><type machine='q35'>hvm</type><kernel>{{.Kernel}}</kernel><initrd>{{.Initrd}}</initrd><cmdline>{{.Cmdline}}</cmdline></os>
<features><acpi/><apic/></features><cpu mode='maximum'/>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<devices>
<emulator>{{.QEMU}}</emulator>
<controller type='usb' model='none'/>
{{range .Ports}}<controller type='pci' index='{{.Index}}' model='pcie-root-port'><target chassis='{{.Index}}' port='{{.Port}}'/><address type='pci' bus='0x00' slot='0x1e' function='{{.Port}}' multifunction='on'/></controller>
{{end}}<controller type='virtio-serial' index='0'><address type='pci' bus='0x00' slot='0x03'/></controller>
<interface type='direct' trustGuestRxFilters='yes'><mac address='{{.MAC}}'/><source dev='lab0' mode='bridge'/><model type='virtio'/><driver name='qemu'/><rom enabled='no'/><alias name='ua-nic0'/><address type='pci' bus='0x01' slot='0x00'/></interface>
<serial type='unix'><source mode='bind' path='{{.Serial}}'/></serial>
<channel type='unix'><source mode='bind' path='{{.Agent}}'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<rng model='virtio'><backend model='builtin'/><address type='pci' bus='0x00' slot='0x04'/></rng>
<memballoon model='virtio' autodeflate='on' freePageReporting='on'><address type='pci' bus='0x00' slot='0x05'/></memballoon>
</devices>
<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='pvpanic-pci'/></qemu:commandline>
<qemu:override><qemu:device alias='ua-nic0'><qemu:frontend><qemu:property name='host_mtu' type='unsigned' value='1500'/></qemu:frontend></qemu:device></qemu:override>
</domain>
`))

type rootPort struct{ Index, Port int }

// Places that libvirtd takes for its own.
var libvirtPlaces = []string{"/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"}

// libvirtConf is how Debian's libvirtd is set, but for what there is not in a lab:
// no security driver and no cgroups (it has none to give), no namespaces, root,
// and QEMU's output straight into files, which spares it virtlogd.
const libvirtConf = `user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
`

// startLibvirt starts Debian's libvirtd on the lab's host, with places of its own.
// All that it mounts is in the mount namespace of the bench.
func (l *lab) startLibvirt(ctx context.Context) error {
	for _, place := range libvirtPlaces {
		mine := l.path("libvirt", filepath.Base(filepath.Dir(place)))
		if err := errors.Join(os.MkdirAll(mine, 0o755), os.MkdirAll(place, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(mine, place, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", place, err)
		}
	}
	// It wants the user that another of its packages makes.
	for file, line := range map[string]string{
		"/etc/passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n", "/etc/group": "libvirt-qemu:x:64055:\n",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		mine := l.path("libvirt", filepath.Base(file))
		if err := os.WriteFile(mine, append(text, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(mine, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", file, err)
		}
	}
	err := errors.Join(
		os.WriteFile("/etc/libvirt/qemu.conf", []byte(libvirtConf), 0o600),
		os.WriteFile("/etc/libvirt/libvirtd.conf", []byte("unix_sock_dir = \"/run/libvirt\"\nauth_unix_rw = \"none\"\n"), 0o600))
	if err != nil {
		return err
	}
	log, err := os.Create(l.path("libvirtd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	l.libvirtd = exec.Command("libvirtd", "-f", "/etc/libvirt/libvirtd.conf")
	l.libvirtd.Stdout, l.libvirtd.Stderr = log, log
	l.libvirtd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.libvirtd.Start(); err != nil {
		return fmt.Errorf("make bench installs it: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := exec.CommandContext(ctx, "virsh", "-q", "-c", "qemu:///system", "list").Run()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			text, _ := os.ReadFile(l.path("libvirtd.log"))
			return fmt.Errorf("libvirtd does not answer: %w\n%s", err, text)
		}
	}
}

func (l *lab) libvirt(ordinal int) *contender {
	virsh := func(words ...string) error {
		_, err := output(nil, "virsh", append([]string{"-q", "-c", "qemu:///system"}, words...)...)
		return err
	}
	pidFile := func(g guest) string { return "/run/libvirt/qemu/" + g.name() + ".pid" }
	return &contender{
		name: "libvirt", ordinal: ordinal, syncs: true,
		prepare: func(g guest) error {
			file, err := os.Create(l.path(g.name(), "domain.xml"))
			if err != nil {
				return err
			}
			err = domain.Execute(file, map[string]any{
				"Name": g.name(), "Kernel": l.files.Kernel, "Initrd": l.files.Initrd, "Cmdline": g.cmdline(), "MAC": g.mac(),
				"QEMU": "/usr/bin/" + qemu, "Serial": l.path(g.name(), "serial"), "Agent": l.path(g.name(), "agent"),
				"Ports": []rootPort{{1, 0}, {2, 1}, {3, 2}, {4, 3}, {5, 4}},
			})
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			return virsh("define", file.Name())
		},
		start: func(g guest, paused bool) error {
			if paused {
				return virsh("start", "--paused", g.name())
			}
			return virsh("start", g.name())
		},
		kill: func(g guest) error { return virsh("destroy", g.name()) },
		stop: func(g guest) error { // virsh does not wait, and says of an end when it is asked
			if err := virsh("shutdown", "--mode", "acpi", g.name()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return gone(ctx, func() bool { return exists(pidFile(g)) })
		},
		console: func(g guest) string { return l.path(g.name(), "serial") },
		pid:     func(g guest) (int, error) { return pidIn(pidFile(g)) },
		child: func(g guest) string {
			name, _ := childOf(g)
			return "ip -d -o link show dev " + name
		},
		list:   func() error { return virsh("list") },
		show:   func(g guest) error { return virsh("dominfo", g.name()) },
		others: func([]guest) []int { return []int{l.libvirtd.Process.Pid} },
		cleaned: func(g guest) (wait, error) {
			link, err := childOf(g)
			return func(ctx context.Context) error {
				return gone(ctx, func() bool { return exists(pidFile(g)) || exists("/sys/class/net", link) })
			}, err
		},
	}
}
