// Command init is the first and only program of the test guest. It loads the
// modules that the initramfs brings, sets addresses, and then serves commands
// on the console.
//
// Kernel command line:
//
//	vmrun.addr=eth0:192.0.2.11/24,2001:db8::11/64;eth1:198.51.100.11/24
//	vmrun.powerbutton=ignore
//
// A command is a line; one that begins with #WORD gets its answer marked so.
// Each answer is lines of detail and a last line that says how it ended:
//
//	#7 ping 192.0.2.1 3
//	vmrun-guest: ok #7 sent=3 received=3
//	disks
//	vmrun-guest| vda 1048576
//	vmrun-guest: ok disks=1
//
// Several commands leave something running for later ones and to be ended by
// another: count, join, listen, tcp serve, dhcp. Where a command takes seconds
// they may have a fraction; none takes longer than a minute. A NIC that is
// plugged in while the guest runs takes the first free name (eth1) and waits for
// up and addr, dhcp or slaac.
//
// What bears neither prefix is the kernel's. Without being asked the guest says
// "vmrun-guest: ready ..." once it serves commands and "vmrun-guest: power
// button" when that was pressed. The command "help" lists the others. Commands
// run beside each other, so a long one does not keep the next from its answer.
package main
