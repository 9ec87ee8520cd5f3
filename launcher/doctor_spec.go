package launcher

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"vmrun/configs"
)

// The checks of what a description promises its owner, and what it does not.

func checkHostAccess(f specFacts) []Finding {
	var found []Finding
	for i, n := range f.guest.NICs {
		remedy := "host_access = true below this [[nic]]"
		if n.Mode != configs.ModeBridge {
			remedy = `mode = "bridge" and host_access = true below this [[nic]]`
		}
		if n.Kind != configs.KindIPvtap && !n.HostAccess {
			found = append(found, tell(Note, fmt.Sprintf("nic[%d]: this host and the guest cannot reach each other through %s", i, n.Parent),
				"the host's own stack is no port of the switch that macvtap is", remedy)...)
		}
	}
	return found
}

func checkARP(f specFacts) []Finding {
	for i, n := range f.guest.NICs {
		for _, link := range []string{"all", n.Parent} {
			if value := f.arpIgnore[link]; n.HostAccess && value != "0" && value != "" {
				return tell(Warn, fmt.Sprintf("nic[%d]: net.ipv4.conf.%s.arp_ignore is %s", i, link, value),
					"the host then does not answer the guest's ARP, because its address is on another link than the one that is asked",
					fmt.Sprintf("sysctl net.ipv4.conf.%s.arp_ignore=0", link))
			}
		}
	}
	return nil
}

func checkMulticast(f specFacts) []Finding {
	var found []Finding
	for i, n := range f.guest.NICs {
		switch {
		case n.Multicast == configs.MulticastOff:
			found = append(found, tell(Warn, fmt.Sprintf(`nic[%d]: multicast = "off"`, i),
				"IPv6 finds its neighbours by multicast, and so do mDNS and LLDP: all of them are dead in this guest", `multicast = "guest"`)...)
		case n.Multicast == configs.MulticastGuest && n.Model != "" && !isVirtio(n.Model):
			found = append(found, tell(Note, fmt.Sprintf("nic[%d]: model = %q does not tell which multicast groups the guest joins", i, n.Model),
				"of QEMU's NICs only virtio-net does, so vmrun cannot let in just those", `model = "virtio-net-pci", or multicast = "all"`)...)
		}
	}
	return found
}

func checkPowerCut(f specFacts) []Finding {
	var found []Finding
	g := f.guest
	ladder := g.Stop.Timeout + g.Stop.QuitTimeout
	if g.Stop.Timeout == 0 {
		found = append(found, tell(Warn, `[stop] timeout = "0s": each stop is a power cut`,
			"the guest is not asked to shut down, and what it has not written yet is lost", `timeout = "60s" below [stop]`)...)
	}
	args := strings.Join(g.QEMUArgs, " ")
	if g.Stop.Timeout > 0 && (slices.Contains(g.QEMUArgs, "-no-acpi") || strings.Contains(args, "acpi=off") || strings.Contains(g.Machine, "acpi=off")) {
		found = append(found, tell(Warn, "the guest has no ACPI, and so no power button",
			fmt.Sprintf("each stop waits %v for nothing, and then is a power cut", g.Stop.Timeout), "take acpi=off and -no-acpi out of qemu_args and machine")...)
	}
	if f.unitStop > 0 && f.unitStop < ladder {
		found = append(found, tell(Warn, fmt.Sprintf("%s has %v to stop, and the guest's stop takes up to %v", f.unit, f.unitStop, ladder),
			"systemd then kills the supervisor in the middle of the stop",
			fmt.Sprintf("systemctl edit %s, and [Service] TimeoutStopSec=%d", f.unit, seconds(ladder)+10))...)
	}
	return found
}

func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

func checkMonitors(f specFacts) []Finding {
	for i, word := range f.guest.QEMUArgs {
		option := strings.Replace(word, "--", "-", 1)
		if !slices.Contains([]string{"-qmp", "-qmp-pretty", "-monitor", "-mon"}, option) || i+1 == len(f.guest.QEMUArgs) {
			continue
		}
		return tell(Note, fmt.Sprintf("qemu_args: %s %s: a monitor that vmrun does not look after", option, f.guest.QEMUArgs[i+1]),
			"it serves one client, a second one hangs, and what is done there vmrun does not hear of; a TCP port would be in the guest's own network namespace",
			"vmrun qmp "+f.guest.Name+", or its control.sock, which serve any number")
	}
	return nil
}
