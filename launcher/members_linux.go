package launcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"vmrun/configs"
	"vmrun/qmp"
)

// A guest is root's alone, unless its spec names a group. The members of that
// may do with this guest what somebody may who stands before a machine: look at
// it, use its console and its screen, press its buttons, pull its plug. They can
// write to nothing but the sockets for it, and reach nothing else. Whether a guest has
// a group is told by the mode of its run directory.

// memberModes are the modes of the files that members use. All others are root's.
var memberModes = map[string]os.FileMode{
	fileLock:                      0o640, // who holds it: whether there is a supervisor
	fileState:                     0o640,
	fileControl:                   0o660,
	fileConsole:                   0o660,
	fileVNC:                       0o660,
	fileConsoleLog:                0o640,
	fileConsoleLog + olderPart:    0o640,
	fileQEMULog:                   0o640,
	fileQEMULog + olderPart:       0o640,
	fileSupervisorLog:             0o640,
	fileSupervisorLog + olderPart: 0o640,
}

// memberCommands are those of the control socket that members may run, beside
// those that only ask. NICs are not among them, nor what writes a file, reads a
// secret or lifts a limit.
var memberCommands = []string{
	CommandStatus, CommandStats, CommandDisks, CommandScreenshot, CommandStop, CommandKill,
	"stop", "cont", "system_reset", "system_powerdown", "system_wakeup", "inject-nmi",
	"send-key", "input-send-event", "rtc-reset-reinjection",
}

// groupID is the number of the group that a spec names, 0 for none. The file of
// the host's groups alone is looked at where the program is static.
func groupID(g *configs.Guest, users userRange) (int, error) {
	if g.Group == "" {
		return 0, nil
	}
	group, err := user.LookupGroup(g.Group)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return 0, g.Errorf("group", "the host has no group %s: groupadd --system %[1]s", g.Group)
	}
	if err != nil {
		return 0, g.Errorf("group", "%v", err)
	}
	gid, err := strconv.Atoi(group.Gid)
	switch {
	case err != nil:
		return 0, g.Errorf("group", "%s has the number %q", g.Group, group.Gid)
	case gid == 0:
		return 0, g.Errorf("group", "%s is root's own: leave the key out", g.Group)
	case gid == groupOf(kvmDevice):
		return 0, g.Errorf("group", "QEMU itself belongs to %s, for %s: choose another", g.Group, kvmDevice)
	case users.has(gid):
		return 0, g.Errorf("group", "%s is the group of a guest: choose another", g.Group)
	}
	return gid, nil
}

// has reports whether a user, or group, is a guest's.
func (r userRange) has(id int) bool { return id >= r.first && id < r.first+r.count }

// group is the group whose members may use the guest, 0 for none.
func (d runDir) group() int {
	info, err := os.Stat(string(d))
	if err != nil || info.Mode().Perm()&0o050 != 0o050 {
		return 0
	}
	return int(info.Sys().(*syscall.Stat_t).Gid)
}

// admit opens the directory, and what is in it for members, to a group, or
// closes it to all but root when gid is 0.
func (d runDir) admit(gid int) error {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return err
	}
	defer root.Close()
	if gid == 0 {
		if err := d.setMode(0o700, 0); err != nil {
			return err
		}
	}
	for file, mode := range memberModes {
		if gid == 0 {
			mode = 0o600
		}
		err := root.Lchown(file, -1, gid)
		if err == nil {
			err = root.Chmod(file, mode)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if gid != 0 {
		return d.setMode(0o750, gid)
	}
	return nil
}

func (d runDir) setMode(mode os.FileMode, gid int) error {
	return errors.Join(os.Chown(string(d), -1, gid), os.Chmod(string(d), mode))
}

// replace writes a file in one go, for those to read who may read the directory. It
// does not wait for the disk: nobody needs the file after this boot.
func (d runDir) replace(file string, data []byte) (err error) {
	f, err := os.CreateTemp(string(d), "."+file+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if gid := d.group(); gid != 0 {
		err = errors.Join(f.Chown(-1, gid), f.Chmod(memberModes[file]))
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), d.path(file))
	}
	return err
}

// sameReaders gives a new part of a log the readers of the one before.
func sameReaders(next, before *os.File) error {
	info, err := before.Stat()
	if err != nil || info.Mode().Perm()&0o040 == 0 {
		return err
	}
	return errors.Join(next.Chown(-1, int(info.Sys().(*syscall.Stat_t).Gid)), next.Chmod(info.Mode().Perm()))
}

// settleGroup closes the directory to an earlier life's group, if this one's is
// another, and to whomever somebody has opened it to.
func (l *life) settleGroup() error {
	info, err := os.Stat(string(l.dir))
	if err == nil && l.dir.group() == l.plan.Group && info.Mode().Perm()&0o027 == 0 {
		return nil
	}
	return l.dir.admit(0)
}

// admitGroup lets the members of the guest's group in, once there is something
// for them. A guest that is adopted keeps the group that it has.
func (l *life) admitGroup() error {
	adopted := l.plan == nil
	gid := l.dir.group()
	if !adopted {
		gid = l.plan.Group
	}
	if gid == 0 {
		return nil
	}
	err := l.dir.admit(gid)
	if err != nil && adopted {
		l.log.Warn("the adopted guest is root's alone by now", "error", err)
		return nil
	}
	return err
}

// admits says why somebody may not use the guest's sockets, or returns nil. It
// does not rely on the mode of the sockets, which somebody may have loosened.
func (d runDir) admits(p qmp.Peer) error {
	users, err := guestUsers()
	gid := d.group()
	switch {
	case p.Owns():
		return nil
	case gid == 0:
		return &qmp.Error{Class: ClassDenied, Desc: fmt.Sprintf("this guest is root's alone, and not for uid %d: group in its spec lets others use it", p.UID)}
	case err == nil && p.In(gid) && !users.has(p.UID):
		return nil
	}
	return &qmp.Error{Class: ClassDenied, Desc: fmt.Sprintf("uid %d is neither root nor in this guest's group (gid %d)", p.UID, gid)}
}

// guarded keeps from members what only root may do.
func guarded(serve qmp.Handler) qmp.Handler {
	return func(ctx context.Context, req qmp.Request) (any, error) {
		if req.Peer.Owns() || asks(req.Command) || slices.Contains(memberCommands, req.Command) {
			return serve(ctx, req)
		}
		return nil, &qmp.Error{Class: ClassDenied, Desc: "only root may do that, and not the members of the guest's group: " + req.Command}
	}
}

// needsRoot is the error for what a member of a guest's group cannot do, or nil
// for root.
func needsRoot(why string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", why, os.ErrPermission)
}
