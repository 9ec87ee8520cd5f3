package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
)

// toolTimeout bounds a qemu-img that changes an image's tables.
const toolTimeout = 2 * time.Minute

// imageWord stands for the image among the arguments of imageTool.
const imageWord = "IMAGE"

// firstExtra is the number of the first of exec.Cmd's ExtraFiles.
const firstExtra = 3

// imageTool runs qemu-img on a disk whose layers are open, the first of them for
// writing. A guest may have written what is parsed there, so the program gets the
// chain spelt out by descriptors, and can open no other file.
func imageTool(ctx context.Context, list []layer, args ...string) error {
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		return explainQemuImg(exec.ErrNotFound, nil)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return err
	}
	args = slices.Clone(args)
	args[slices.Index(args, imageWord)] = imageOptions(list)
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = &out, &out
	for _, l := range list {
		cmd.ExtraFiles = append(cmd.ExtraFiles, l.file)
	}
	err = netsetup.OnThread(func() error {
		if err := confineTool(program, list); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("qemu-img: %w", err)
	}
	return explainQemuImg(cmd.Wait(), out.Bytes())
}

// imageOptions names a chain by its descriptors (qemu-img(1), block.c on "json:").
func imageOptions(list []layer) string {
	var below any
	for n := len(list) - 1; n >= 0; n-- {
		driver := "file"
		if list[n].Device {
			driver = "host_device"
		}
		node := map[string]any{
			"driver":    string(list[n].Format),
			"read-only": n > 0,
			"file":      map[string]any{"driver": driver, "filename": fmt.Sprintf("/dev/fd/%d", firstExtra+n)},
		}
		if list[n].Format == "qcow2" {
			node["backing"] = below
		}
		below = node
	}
	text, err := json.Marshal(below)
	if err != nil {
		panic(err) // strings, booleans and nil only
	}
	return "json:" + string(text)
}

// confineTool leaves the calling thread, and the program that it starts, with the
// files of a chain and what the program loads. Of root's rights it keeps that to
// open these, whoever owns them.
func confineTool(program string, list []layer) error {
	parts := []part{{real: "/dev/null", device: true}, {real: "/dev/urandom", device: true}}
	for _, path := range loadedBy(program) {
		if info, err := os.Stat(path); err == nil {
			parts = append(parts, part{real: path, dir: info.IsDir()})
		}
	}
	for n, l := range list {
		parts = append(parts, part{real: fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()), image: true, device: n == 0})
	}
	if os.Geteuid() == 0 {
		if err := shedThread([]privilege{{bit: unix.CAP_DAC_OVERRIDE}}); err != nil {
			return err
		}
	} else if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return errors.Join(errors.New("no_new_privs"), err)
	}
	if err := landlock(parts); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return filterCalls()
}
