package main

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmrun/launcher/guesttest"
)

// debianInstaller is where the package debian-installer-12-netboot-amd64 has it.
const debianInstaller = "/usr/lib/debian-installer/images/12/amd64/text"

// isDialogue reports whether a picture has one of newt's: a grey box with black
// and red words on blue, in the colours of Linux's console.
func isDialogue(picture image.Image) bool {
	blue, grey := share(picture, color.RGBA{0, 0, 0xaa, 0xff}), share(picture, color.RGBA{0xaa, 0xaa, 0xaa, 0xff})
	return blue > 0.05 && grey > 0.3 && blue+grey > 0.8 && colours(picture) > 3
}

// Debian's installer on a CD: the guest shows the boot menu, does what its owner
// types, and comes to the first question. go test -artifacts keeps the pictures.
func TestInstallerCD(t *testing.T) {
	testAll(t, "xorriso")
	h := newHost(t)
	iso := filepath.Join(t.TempDir(), "debian.iso")
	screens := debianInstaller + "/debian-installer/amd64/boot-screens/"
	out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-r", "-V", "Debian 12 installer", "-o", iso,
		"-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-graft-points",
		"isolinux.bin=/usr/lib/ISOLINUX/isolinux.bin", "isolinux.cfg="+screens+"syslinux.cfg", "ldlinux.c32="+screens+"ldlinux.c32",
		"debian-installer="+debianInstaller+"/debian-installer").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.boot("cd1", fmt.Sprintf("memory = \"1GiB\"\naccel = \"tcg\"\ndisplay = \"vnc\"\n[[disk]]\npath = %q\ncdrom = true\n", iso))
	h.awaitPicture("cd1", "menu", time.Minute, func(p image.Image) bool { return p.Bounds().Dx() == 640 && colours(p) > 100 })
	h.vmrun(0, "", "sendkey", "cd1", "ret")
	h.awaitPicture("cd1", "language", 6*time.Minute, isDialogue)
	h.vmrun(0, `^cd1: stopped`, "kill", "cd1")
}

// The same from a server on the wire, through UEFI's own network boot and a chain
// of boot loaders that are signed.
func TestInstallerByNetworkWithSecureBoot(t *testing.T) {
	testAll(t)
	needFirmware(t)
	h := newHost(t)
	root := t.TempDir() // where each loader looks for the next
	for name, file := range map[string]string{"bootnetx64.efi": "amd64/bootnetx64.efi", "grubx64.efi": "amd64/grubx64.efi", "debian-installer": ""} {
		if err := os.Symlink(filepath.Join(debianInstaller, "debian-installer", file), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.lab.ServeBoot(t, root, "bootnetx64.efi")
	h.boot("net1", "memory = \"1GiB\"\naccel = \"tcg\"\ndisplay = \"vnc\"\nfirmware = \"uefi\"\nsecure_boot = true\n"+
		"[[nic]]\nparent = \"lab0\"\nboot_index = 0\n")
	h.awaitPicture("net1", "menu", 6*time.Minute, func(p image.Image) bool {
		return p.Bounds().Dx() == 800 && share(p, color.RGBA{0, 0, 0xa8, 0xff}) > 0.5 // GRUB's, which is large and blue
	})
	h.vmrun(0, `^net1: stopped`, "kill", "net1")
}

// The guest's kernel sees that secure boot is on.
func TestSecureBoot(t *testing.T) {
	testAll(t)
	needFirmware(t)
	h := newHost(t)
	files := guesttest.Image(t)
	h.boot("secure1", fmt.Sprintf("memory = \"256MiB\"\naccel = \"tcg\"\nfirmware = \"uefi\"\nsecure_boot = true\nready.when = \"console:secureboot: Secure boot enabled\"\nboot = { kernel = %q, initrd = %q, cmdline = %q }\n",
		files.Kernel, files.Initrd, "console=ttyS0"))
	h.vmrun(0, "", "wait", "--for=ready", "--timeout=2m", "secure1")
	h.vmrun(0, `^secure1: stopped`, "kill", "secure1")
}

// awaitPicture waits until the guest's screen is as it should be.
func (h *host) awaitPicture(name, what string, patience time.Duration, good func(image.Image) bool) {
	h.t.Helper()
	start := time.Now()
	var picture image.Image
	for time.Since(start) < patience {
		if picture = h.picture(name); good(picture) {
			break
		}
		time.Sleep(time.Second)
	}
	path := filepath.Join(h.t.ArtifactDir(), name+"-"+what+".png")
	f, err := os.Create(path)
	if err == nil {
		err = png.Encode(f, picture)
		f.Close()
	}
	if err != nil {
		h.t.Error(err)
	}
	h.t.Logf("%s: after %v %v with %d colours: %s", what, time.Since(start).Round(time.Second),
		picture.Bounds().Size(), colours(picture), path)
	if !good(picture) {
		h.t.Fatalf("the screen of %s does not show the %s", name, what)
	}
}

// colours is how many a picture has.
func colours(picture image.Image) int { return len(counts(picture)) }

// share is how much of a picture has a colour.
func share(picture image.Image, c color.RGBA) float64 {
	return float64(counts(picture)[c]) / float64(picture.Bounds().Dx()*picture.Bounds().Dy())
}

func counts(picture image.Image) map[color.RGBA]int {
	all, b := map[color.RGBA]int{}, picture.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			all[color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA)]++
		}
	}
	return all
}
