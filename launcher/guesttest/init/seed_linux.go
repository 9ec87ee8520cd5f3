package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// files mounts a file system and tells the files in its top directory.
func (g *guest) files(args []string) (answer, error) {
	dir, err := os.MkdirTemp("/", "files")
	if err != nil {
		return answer{}, err
	}
	defer os.Remove(dir)
	if err := unix.Mount(diskPath(args[0]), dir, args[1], unix.MS_RDONLY, ""); err != nil {
		return answer{}, fmt.Errorf("mount: %w", err)
	}
	defer unix.Unmount(dir, 0)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return answer{}, err
	}
	var a answer
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return answer{}, err
		}
		info, err := e.Info()
		if err != nil {
			return answer{}, err
		}
		a.lines = append(a.lines, fmt.Sprintf("%s %o %s", e.Name(), info.Mode().Perm(), base64.StdEncoding.EncodeToString(data)))
	}
	a.reply = fmt.Sprintf("files=%d", len(a.lines))
	return a, nil
}

// oem tells the firmware's strings of type 11 (DMTF DSP0134, 7.12).
func (g *guest) oem([]string) (answer, error) {
	tables, err := os.ReadFile("/sys/firmware/dmi/tables/DMI")
	if err != nil {
		return answer{}, err
	}
	var a answer
	for len(tables) > 4 && int(tables[1]) <= len(tables) {
		kind, rest := tables[0], tables[tables[1]:]
		end := bytes.Index(rest, []byte{0, 0})
		if end < 0 {
			break
		}
		if kind == 11 {
			for _, s := range bytes.Split(rest[:end], []byte{0}) {
				a.lines = append(a.lines, string(s))
			}
		}
		tables = rest[end+2:]
	}
	a.reply = fmt.Sprintf("strings=%d", len(a.lines))
	return a, nil
}
