package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
)

// diskTimeout bounds a change to a disk: a snapshot may freeze the guest's file
// systems, and a tray waits for the guest.
const diskTimeout = 2 * time.Minute

// diskActs are what can be done to disks. Each takes a guest and the name of its
// disk, or but for the last two an image that no spec speaks of.
var diskActs = []struct {
	name  string
	usage string
	extra int // words after the guest and the disk, or after the image
}{
	{"info", "info GUEST|IMAGE...", 0},
	{"create", "create IMAGE [SIZE]", 0},
	{"resize", "resize GUEST DISK SIZE, or IMAGE SIZE", 1},
	{"snapshot", "snapshot GUEST DISK NAME, or IMAGE NAME", 1},
	{"rollback", "rollback GUEST DISK NAME, or IMAGE NAME", 1},
	{"insert", "insert GUEST DISK IMAGE", 1},
	{"eject", "eject GUEST DISK", 0},
}

// diskFlags are those of the verb, each for some acts.
type diskFlags struct {
	base, format  string
	force, delete bool
}

func (a *app) diskCmd() *cobra.Command {
	var f diskFlags
	cmd := &cobra.Command{
		Use:   "disk info|create|resize|snapshot|rollback|insert|eject ...",
		Short: "Look at disks and their images, make, grow and snapshot them, change CDs",
		Long: `Look at disks and their images, make, grow and snapshot them, change CDs.

  vmrun disk info GUEST|IMAGE...          of what images a disk is made, and who uses it
  vmrun disk create IMAGE [SIZE]          make an image, with --base on another
  vmrun disk resize GUEST DISK SIZE       make a disk larger, of a guest that runs too
  vmrun disk snapshot GUEST DISK NAME     keep what is on it inside its qcow2 image
  vmrun disk rollback GUEST DISK NAME     make it what it was; not while the guest runs
  vmrun disk insert GUEST DISK IMAGE      put a CD into a drive of a guest that runs
  vmrun disk eject GUEST DISK             take it out

A disk is called by its place in the spec, disk0 for the first. Instead of GUEST
DISK, resize, snapshot and rollback take an IMAGE that no spec speaks of: a path
that ends in .qcow2, .raw, .img or .iso, is in /dev, or comes with --format.

No disk is ever shrunk, but by a rollback to a time when it was smaller. A snapshot
is of one disk, without memory: vmrun snapshot keeps memory and disks together. A CD
stays until it is changed or the guest ends; its spec is not changed.`,
		Example: `  vmrun disk info web1
  vmrun disk resize web1 disk0 40GiB
  vmrun disk snapshot web1 disk0 before-upgrade
  vmrun disk insert win1 disk1 virtio-win.iso
  vmrun disk create web2.qcow2 --base debian-12.qcow2`,
		GroupID:           "life",
		Args:              func(_ *cobra.Command, args []string) error { return diskArgs(args, f.format) },
		ValidArgsFunction: a.completeDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(args[0], a.json); err != nil {
				a.usage = true
				return err
			}
			switch args[0] {
			case "info":
				return a.diskInfos(cmd.Context(), args[1:], f.format)
			case "create":
				return a.createImage(cmd.Context(), args[1:], f)
			}
			return a.changeDisk(cmd.Context(), args[0], args[1:], f)
		},
	}
	cmd.Flags().StringVar(&f.base, "base", "", "create: the `IMAGE` that the new one is an overlay of")
	cmd.Flags().StringVar(&f.format, "format", "", "the image's `FORMAT`, raw or qcow2, where its name does not tell")
	cmd.Flags().BoolVar(&f.delete, "delete", false, "snapshot: delete it")
	cmd.Flags().BoolVar(&f.force, "force", false, "insert, eject: open a tray that the guest has locked")
	return a.jsonFlag(cmd)
}

func (f diskFlags) check(act string, json bool) error {
	switch {
	case json && act != "info":
		return errors.New("--json is for info")
	case f.base != "" && act != "create":
		return errors.New("--base is for create")
	case f.delete && act != "snapshot":
		return errors.New("--delete is for snapshot")
	case f.force && act != "insert" && act != "eject":
		return errors.New("--force is for insert and eject")
	case f.format != "" && f.format != string(configs.FormatRaw) && f.format != string(configs.FormatQCOW2):
		return fmt.Errorf("--format %s: use raw or qcow2", safe(f.format))
	}
	return nil
}

// diskArgs checks the shape of the words after disk.
func diskArgs(args []string, format string) error {
	var names []string
	for _, act := range diskActs {
		names = append(names, act.name)
	}
	if len(args) == 0 {
		return fmt.Errorf("say what to do: %s", strings.Join(names, ", "))
	}
	i := slices.Index(names, args[0])
	if i < 0 {
		return fmt.Errorf("%s is nothing to do with a disk: use one of %s", safe(args[0]), strings.Join(names, ", "))
	}
	act, rest := diskActs[i], args[1:]
	alone := len(rest) > 0 && isImage(rest[0], format)
	fits := len(rest) == 2+act.extra
	switch act.name {
	case "info":
		fits = len(rest) > 0
	case "create":
		fits = len(rest) == 1 || len(rest) == 2
	case "resize", "snapshot", "rollback":
		fits = fits && !alone || alone && len(rest) == 1+act.extra
	}
	if !fits {
		return fmt.Errorf("want: vmrun disk %s", act.usage)
	}
	return nil
}

// isImage reports whether an argument is an image, and no guest.
func isImage(arg, format string) bool {
	return format != "" || strings.HasPrefix(arg, "/dev/") || configs.ImageFormat(arg) != ""
}

// imageAt is an image that no spec speaks of.
func (a *app) imageAt(arg, format string) (launcher.Disk, error) {
	path, err := filepath.Abs(arg)
	if err != nil {
		return launcher.Disk{}, err
	}
	d := configs.Disk{Path: path, Format: configs.DiskFormat(format)}
	if d.Format == "" {
		d.Format = configs.ImageFormat(path)
	}
	if d.Format == "" {
		return launcher.Disk{}, usageError{fmt.Errorf("the ending of %s does not tell the format: add --format raw or --format qcow2", safe(filepath.Base(path)))}
	}
	return launcher.Disk{Spec: d, Alone: true, Base: a.runDir}, nil
}

// disksOf are the disks of a guest, and whether it runs.
func (a *app) disksOf(ctx context.Context, arg string) (name string, list []launcher.Disk, runs bool, err error) {
	if name, err = a.guestName(arg); err != nil {
		return name, nil, false, err
	}
	list, err = launcher.DisksOf(ctx, a.runDir, name)
	if !errors.Is(err, launcher.ErrNotFound) {
		return name, list, err == nil, err
	}
	g, err := a.loadSpec(arg)
	if err != nil {
		return name, nil, false, err
	}
	return name, launcher.Disks(a.runDir, g), false, nil
}

// createImage makes an image.
func (a *app) createImage(ctx context.Context, args []string, f diskFlags) error {
	image, err := a.imageAt(args[0], f.format)
	if err != nil {
		return err
	}
	d := image.Spec
	if len(args) == 2 {
		if d.Size, err = diskSizeWord(args[1]); err != nil {
			return err
		}
	}
	switch {
	case f.base == "" && d.Size == 0:
		return usageError{errors.New("say how large: vmrun disk create IMAGE SIZE; only with --base the size is its base's")}
	case f.base != "" && d.Format != configs.FormatQCOW2:
		return usageError{errors.New("only a qcow2 image can be an overlay")}
	case f.base != "":
		if configs.ImageFormat(f.base) == "" { // --format is the new image's
			return usageError{fmt.Errorf("the ending of %s does not tell its format: rename it, or link to it by a name that ends in .qcow2 or .raw", safe(filepath.Base(f.base)))}
		}
		base, err := a.imageAt(f.base, "")
		if err != nil {
			return err
		}
		d.Base, d.BaseFormat = base.Spec.Path, base.Spec.Format
	}
	if _, err := os.Lstat(d.Path); err == nil {
		return fmt.Errorf("%s is there already", d.Path)
	}
	if err := launcher.CreateImage(ctx, d); err != nil {
		return err
	}
	on := ""
	if d.Base != "" {
		on = ", on " + d.Base
	}
	info := image.Info("")
	say("%s: %s, %s%s", d.Path, d.Format, configs.Size(info.Size), on)
	return nil
}

func diskSizeWord(word string) (configs.Size, error) {
	size, err := configs.ParseSize(word)
	switch {
	case err != nil:
		return 0, usageError{err}
	case size == 0 || size%512 != 0:
		return 0, usageError{fmt.Errorf("%s is no size for a disk: use a multiple of 512B", safe(word))}
	}
	return size, nil
}

// changeDisk does one of diskActs, to a guest's disk or an image alone.
func (a *app) changeDisk(ctx context.Context, act string, words []string, f diskFlags) error {
	var c diskChange
	if act == "resize" {
		size, err := diskSizeWord(words[len(words)-1])
		if err != nil {
			return err
		}
		c.args.Size = uint64(size)
	}
	if act == "snapshot" || act == "rollback" {
		c.args.Snapshot = words[len(words)-1]
		if err := launcher.CheckSnapshotName(c.args.Snapshot); err != nil {
			return usageError{err}
		}
	}
	c.act, c.delete, c.args.Force = act, f.delete, f.force
	if act != "insert" && act != "eject" && isImage(words[0], f.format) {
		image, err := a.imageAt(words[0], f.format)
		if err != nil {
			return err
		}
		return c.atRest(ctx, image, image.Spec.Path)
	}
	name, list, runs, err := a.disksOf(ctx, words[0])
	if err != nil {
		return err
	}
	i, err := launcher.DiskNumber(words[1], len(list))
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", name, err)}
	}
	c.args.Disk = words[1]
	if act == "insert" {
		medium, err := a.imageAt(words[2], f.format)
		if err != nil {
			return err
		}
		c.args.Path, c.args.Format = medium.Spec.Path, medium.Spec.Format
	}
	if !runs {
		return c.atRest(ctx, list[i], fmt.Sprintf("%s: %s", name, words[1]))
	}
	return a.changeLive(ctx, name, c)
}

// diskChange is what is to be done.
type diskChange struct {
	act    string
	delete bool
	args   launcher.DiskArguments
}

// done says what was done.
func (c diskChange) done() string {
	switch {
	case c.act == "resize":
		return configs.Size(c.args.Size).String()
	case c.act == "rollback":
		return "as it was at " + c.args.Snapshot
	case c.delete:
		return "snapshot " + c.args.Snapshot + " deleted"
	case c.act == "snapshot":
		return "snapshot " + c.args.Snapshot
	case c.act == "insert":
		return c.args.Path
	}
	return "ejected"
}

// atRest changes a disk that no guest uses.
func (c diskChange) atRest(ctx context.Context, d launcher.Disk, what string) (err error) {
	switch {
	case d.Spec.Path == "" || c.act == "insert" || c.act == "eject":
		return fmt.Errorf("%s: %w: the guest does not run, and so has no drive: path in its spec says which CD it begins with", what, launcher.ErrState)
	case c.act == "resize":
		err = d.Grow(ctx, c.args.Size)
	case c.act == "rollback":
		err = d.Rollback(ctx, c.args.Snapshot)
	case c.delete:
		err = d.DeleteSnapshot(ctx, c.args.Snapshot)
	default:
		err = d.Snapshot(ctx, c.args.Snapshot)
	}
	if err == nil {
		say("%s: %s", what, c.done())
	}
	return err
}

// changeLive has a guest's supervisor change a disk.
func (a *app) changeLive(ctx context.Context, name string, c diskChange) error {
	command := map[string]string{"resize": launcher.CommandResize, "snapshot": launcher.CommandSnapshot, "insert": launcher.CommandInsert, "eject": launcher.CommandEject}[c.act]
	switch {
	case c.act == "rollback":
		return fmt.Errorf("%s: %w: it runs, and would not notice: vmrun stop %s", name, launcher.ErrState, name)
	case c.delete:
		command = launcher.CommandForget
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	var frozen launcher.Freeze
	var result any
	if c.act == "snapshot" {
		result = &frozen
	}
	if err := a.command(ctx, name, command, c.args, result); err != nil {
		return err
	}
	say("%s: %s: %s", name, c.args.Disk, c.done())
	if c.act == "snapshot" && !c.delete && frozen.Why != "" {
		warn("%s: its file systems were not frozen, so it is as after a power cut: %s", name, safe(frozen.Why))
	}
	return nil
}

// completeDisk completes what to do, then guests, then their disks.
func (a *app) completeDisk(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	switch {
	case len(args) == 0:
		var words []string
		for _, act := range diskActs {
			words = append(words, cobra.CompletionWithDesc(act.name, act.usage))
		}
		return words, none
	case args[0] == "create":
		return nil, cobra.ShellCompDirectiveDefault
	case len(args) == 1:
		return a.completeGuests(cmd, nil, typed)
	case len(args) == 2 && args[0] != "info":
		_, list, _, _ := a.disksOf(cmd.Context(), args[1]) // what cannot be seen cannot be completed
		var words []string
		for i, d := range list {
			words = append(words, cobra.CompletionWithDesc(fmt.Sprintf("disk%d", i), safe(d.Spec.Path)))
		}
		return words, none
	}
	return nil, cobra.ShellCompDirectiveDefault
}
