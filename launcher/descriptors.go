package launcher

// descriptors hands out the numbers under which QEMU finds its open files.
type descriptors struct {
	names  []string // what each descriptor is, by number
	images []string // the paths of the images in fdsets, by number less one
}

// The names of descriptors that the steps look up.
const (
	fdMonitor = "monitor"
	fdConsole = "console"
	fdAgent   = "agent"
	fdKernel  = "kernel"
	fdInitrd  = "initrd"
	fdCode    = "uefi-code" // of the firmware, also the name of its node
	fdVars    = "uefi-vars"
	fdSeed    = "seed"
)

func newDescriptors() *descriptors {
	return &descriptors{names: []string{"/dev/null", fileStderr, fileStderr}}
}

// add reserves the next number for the file called name.
func (d *descriptors) add(name string) int {
	d.names = append(d.names, name)
	return len(d.names) - 1
}

// addSet reserves the next number, and the next fdset for it, for an image.
func (d *descriptors) addSet(name, path string) (fd, set int) {
	d.images = append(d.images, path)
	return d.add(name), len(d.images)
}
