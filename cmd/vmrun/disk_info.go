package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"vmrun/configs"
	"vmrun/launcher"
)

// diskInfos shows the disks of guests, and images.
func (a *app) diskInfos(ctx context.Context, args []string, format string) error {
	list := []launcher.DiskInfo{}
	err := each(args, func(arg string) error {
		if isImage(arg, format) {
			image, err := a.imageAt(arg, format)
			if err == nil {
				_, err = os.Stat(image.Spec.Path)
			}
			if err == nil {
				list = append(list, image.Info(""))
			}
			return err
		}
		_, disks, _, err := a.disksOf(ctx, arg)
		for i, d := range disks {
			list = append(list, d.Info(fmt.Sprintf("disk%d", i)))
		}
		return err
	})
	if err != nil && len(list) == 0 {
		return err
	}
	if a.json {
		if printErr := printJSON(list); printErr != nil {
			return printErr
		}
		return err
	}
	if printErr := printDisks(os.Stdout, list); printErr != nil {
		return printErr
	}
	for _, d := range list {
		if d.Problem != "" && err == nil {
			err = errQuiet // it has been shown
		}
	}
	return err
}

func printDisks(w io.Writer, list []launcher.DiskInfo) error {
	t := table(w)
	fmt.Fprintln(t, "DISK\tSIZE\tALLOCATED\tFORMAT\tIMAGE")
	for _, d := range list {
		name := d.Name
		if name == "" {
			name = "-"
		}
		for i, l := range d.Layers {
			image := l.Path
			if i > 0 {
				name, image = "", "on "+l.Path
			}
			cells(t, name, sizeWord(l.Size), sizeWord(l.Allocated), string(l.Format), image)
		}
		if len(d.Layers) == 0 {
			word := "an empty drive"
			if d.Problem != "" {
				word = "-"
			}
			cells(t, name, "-", "-", "-", word)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range list {
		name := d.Name
		if name == "" && len(d.Layers) > 0 {
			name = d.Layers[0].Path
		}
		for _, s := range d.Snapshots {
			fmt.Fprintf(w, "%s: snapshot %s, %s%s\n", safe(name), safe(s.Name), time.Unix(int64(s.Seconds), 0).Format(time.DateTime), memoryWord(s))
		}
		if d.Holder != "" {
			fmt.Fprintf(w, "%s: in use by %s\n", safe(name), safe(d.Holder))
		}
		if d.Problem != "" {
			fmt.Fprintf(w, "%s: %s\n", safe(name), safe(d.Problem))
		}
	}
	return nil
}

func memoryWord(s launcher.ImageSnapshot) string {
	if s.VMState == 0 {
		return ""
	}
	return ", with memory"
}

// sizeWord is a size in the largest unit that leaves a digit before the point.
func sizeWord(n uint64) string {
	switch {
	case n == 0:
		return "-"
	case n < 1<<20 || n%(1<<30) == 0:
		return configs.Size(n).String()
	case n < 1<<30:
		return fmt.Sprintf("%.4gMiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.4gGiB", float64(n)/(1<<30))
}
