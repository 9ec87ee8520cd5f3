// Package guesttest is a guest to test with: Debian's cloud kernel and an
// initramfs that holds one program of ours (package init, beside this one).
// It boots in seconds without KVM, answers ping, obeys the power button, and
// takes commands on its serial console.
//
//	files := guesttest.Image(t)          // kernel and initramfs, built once
//	... start QEMU with guesttest.Cmdline ...
//	con, err := guesttest.Dial(ctx, "console.sock")
//	_, err = con.WaitReady(ctx)
//	reply, lines, err := con.Run(ctx, "ping 192.0.2.1 3")
//
// The kernel is fetched beforehand, once, by fetch-kernel.sh into the cache
// ($VMRUN_TEST_CACHE, or vmrun in the user's cache directory). A test that finds
// none is skipped with that remedy, and fails where VMRUN_TEST_REQUIRE=1 says
// that nothing may be skipped. The initramfs is made with nothing but Go, once
// for each kernel and program, and shared by tests that run at the same time.
//
// Debian is another guest: Debian 12 as people have it, with systemd, cloud-init, the
// guest agent and sshd, which build-image.sh makes of Debian's packages. It takes half
// a minute to boot, so that its tests are for make test-all alone:
//
//	debian := guesttest.Debian(t)        // or the test is skipped
//	... a spec with debian.Disk(path), an overlay, and debian.Boot() or none ...
//	sh, err := guesttest.DialShell(ctx, "console.sock") // root's
//	out, err := sh.Run(ctx, "hostname")
//
// Without a seed it has the addresses that DHCP gives it. It has a disk of 2 GiB with
// three partitions, of which the last is the root and grows with the disk.
//
// init's doc.go and its command "help" list what the guest understands. The
// kernel has virtio and vmxnet3 drivers and no e1000; Options brings more of
// Debian's modules, or a program to try in a kernel that has them.
package guesttest
