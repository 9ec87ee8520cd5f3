package launcher

import (
	"strings"
	"time"
)

// passedOn are QEMU's commands that a client of the control socket may run,
// beside those that only ask (query-…, x-query-…), with the time that QEMU gets.
// What changes the guest's state among them sends events, which the supervisor
// follows. All others are refused: they could change what vmrun knows of the
// guest, and a newer QEMU has more of them than can be known here.
var passedOn = map[string]time.Duration{
	"stop":                        commandTimeout,
	"cont":                        commandTimeout,
	"system_reset":                commandTimeout,
	"system_powerdown":            commandTimeout,
	"system_wakeup":               commandTimeout,
	"inject-nmi":                  commandTimeout,
	"send-key":                    commandTimeout,
	"input-send-event":            commandTimeout,
	"announce-self":               commandTimeout,
	"rtc-reset-reinjection":       commandTimeout,
	"balloon":                     commandTimeout,
	"block_set_io_throttle":       busyTimeout,
	"block-latency-histogram-set": commandTimeout,
	"screendump":                  busyTimeout,
	"qom-get":                     commandTimeout,
	"qom-list":                    commandTimeout,
	"qom-list-types":              commandTimeout,
	"qom-list-properties":         commandTimeout,
	"device-list-properties":      commandTimeout,
	"trace-event-get-state":       commandTimeout,
	"trace-event-set-state":       commandTimeout,
}

// busyTimeout bounds a command that may have real work to do.
const busyTimeout = time.Minute

// insteadOf says for some commands that are refused what to do instead.
var insteadOf = map[string]string{
	"quit":                            "use vmrun stop, or vmrun kill",
	"migrate":                         "use vmrun suspend",
	"snapshot-save":                   "use vmrun snapshot",
	"snapshot-load":                   "use vmrun rollback",
	"snapshot-delete":                 "use vmrun snapshot --delete",
	"netdev_add":                      "use vmrun nic GUEST attach",
	"netdev_del":                      "use vmrun nic GUEST detach",
	"device_add":                      "use vmrun nic GUEST attach for a NIC",
	"device_del":                      "use vmrun nic GUEST detach for a NIC",
	"set_link":                        "use vmrun nic GUEST set NIC link=down",
	"blockdev-add":                    "disks are the spec's; use vmrun disk insert for a medium",
	"eject":                           "use vmrun disk eject",
	"block_resize":                    "use vmrun disk resize",
	"blockdev-open-tray":              "use vmrun disk eject",
	"blockdev-snapshot-internal-sync": "use vmrun disk snapshot",
	"human-monitor-command":           "use the QMP command that does it",
}

// passOnLimit is how long QEMU gets for a client's command, which is passed on
// if ok. A frozen QEMU can be told from a busy one by it.
func passOnLimit(command string) (limit time.Duration, ok bool) {
	if asks(command) {
		return commandTimeout, true
	}
	limit, ok = passedOn[command]
	return limit, ok
}

// asks reports whether a command only asks.
func asks(command string) bool {
	return strings.HasPrefix(command, "query-") || strings.HasPrefix(command, "x-query-")
}

// refusal is what a client is told.
func refusal(command string) string {
	text := "not passed on: QEMU's command " + command + ", if there is one, could change what vmrun knows of the guest"
	if instead, ok := insteadOf[command]; ok {
		text += ": " + instead
	}
	return text
}
