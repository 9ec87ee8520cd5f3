package main

import (
	"fmt"
	"io"

	"vmrun/launcher"
)

// printSecurity lists the walls around a guest's QEMU.
func printSecurity(w io.Writer, walls []launcher.Wall) error {
	t := table(w)
	standing := 0
	for _, wall := range walls {
		mark := "OPEN"
		if wall.Stands {
			mark = "ok"
			standing++
		}
		cells(t, mark, wall.Name, wall.Text)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d of %d walls around QEMU and its companions stand\n", standing, len(walls))
	return err
}
