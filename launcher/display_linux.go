package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"

	"vmrun/configs"
	"vmrun/qmp"
)

// display lets people look at the guest's screen. QEMU's VNC server listens
// nowhere: who connects to vnc.sock, and may, is handed to it as a descriptor
// (QEMU's qapi/misc.json, add_client), and has no more to do with this process.
type display struct {
	life *life
}

func (l *life) serveDisplay(context.Context) error {
	listener, err := listenUnix(l.dir.path(fileVNC))
	if err != nil {
		return err
	}
	d := &display{life: l}
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(listener, d.welcome) })
	l.undo.push("display", func() error {
		err := listener.Close()
		wg.Wait()
		return errors.Join(err, l.removeOwn(fileVNC))
	})
	return nil
}

// adoptDisplay serves the screen of a guest that was adopted, if it has one. It is
// adopted all the same where that fails.
func (l *life) adoptDisplay(ctx context.Context) error {
	if l.guest().Display != configs.DisplayVNC {
		return nil
	}
	if err := l.serveDisplay(ctx); err != nil {
		l.log.Warn("the adopted guest's screen cannot be seen any more", "error", err)
	}
	return nil
}

// welcome hands on who may look.
func (d *display) welcome(conn *net.UnixConn) {
	defer conn.Close()
	peer := qmp.PeerOf(conn)
	err := d.life.dir.admits(peer)
	if err == nil {
		err = d.pass(conn)
	}
	if err != nil {
		d.life.log.Warn("nobody more is let in to the screen", "pid", peer.PID, "uid", peer.UID, "error", err)
	}
}

// nameViewer is what QEMU calls a connection before its VNC server has it.
const nameViewer = "vnc-viewer"

// pass hands a connection to QEMU.
func (d *display) pass(conn *net.UnixConn) error {
	file, err := conn.File()
	if err != nil {
		return err
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	mon, err := d.life.reach(ctx)
	if err != nil {
		return err
	}
	if err := mon.GetFD(ctx, nameViewer, file); err != nil {
		return err
	}
	// It has shown who it is to the kernel.
	args := map[string]any{"protocol": "vnc", "fdname": nameViewer, "skipauth": true}
	if err := mon.Execute(ctx, "add_client", args, nil); err != nil {
		return errors.Join(err, unlessRefused(mon.CloseFD(ctx, nameViewer)))
	}
	return nil
}

// Screenshot is what vmrun-screenshot returns.
type Screenshot struct {
	PNG []byte `json:"png"`
}

// maxScreenshot bounds a picture, so that it fits into an answer.
const maxScreenshot = 11 << 20

// screenshot has QEMU draw the guest's screen into memory that is made for it.
func (l *life) screenshot(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	picture, err := l.draw(ctx)
	var refused *qmp.Error
	if errors.As(err, &refused) && l.guest().Display == configs.DisplayNone {
		return nil, qmp.Errorf(`the guest has no screen: display = "vnc" in its spec gives it one with its next start`)
	}
	if err != nil {
		return nil, unresponsive(err)
	}
	if _, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil {
		return nil, qmp.Errorf("QEMU's picture is none: %v", err)
	}
	return Screenshot{PNG: picture}, nil
}

func (l *life) draw(ctx context.Context) (picture []byte, err error) {
	memory, err := memoryFile("screenshot", 0)
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	// QEMU takes from an fdset what is open for writing alone (util/osdep.c, qemu_open).
	target, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", memory.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	mon, err := l.reach(ctx)
	if err != nil {
		return nil, err
	}
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := mon.ExecuteFiles(ctx, "add-fd", nil, &set, target); err != nil {
		return nil, err
	}
	defer func() {
		if err := mon.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil); err != nil {
			l.log.Warn("QEMU keeps a descriptor", "error", err, slog.Int("fdset", set.ID))
		}
	}()
	args := map[string]any{"filename": "/dev/fdset/" + strconv.Itoa(set.ID), "format": "png"}
	if err := mon.Execute(ctx, "screendump", args, nil); err != nil {
		return nil, err
	}
	picture, err = io.ReadAll(io.NewSectionReader(memory, 0, maxScreenshot+1))
	if err == nil && len(picture) > maxScreenshot {
		err = qmp.Errorf("the picture is larger than %d MiB", maxScreenshot>>20)
	}
	return picture, err
}
