#!/bin/bash
# build-image.sh CACHE: makes the image of a Debian 12 guest as people have it, with
# systemd, cloud-init, the guest agent and sshd, from Debian's own packages, once, and
# puts it into CACHE/debian: disk.qcow2, and its kernel and initrd for a direct boot,
# vmlinuz and initrd.img, with cmdline. One image boots by BIOS (GRUB in the disk's
# first sectors) and by UEFI with secure boot (Debian's signed shim and GRUB in the
# EFI system partition). Needs root, mmdebstrap, mtools and the rest of
# TEST_ALL_PACKAGES in the Makefile; mounts no image and takes no loop device.
#
# It is Debian's but for what is slow without KVM, which is switched off, and for the
# serial console, on which root is logged in: for tests only.
set -euo pipefail

if [ $# -ne 1 ]; then
	echo "usage: $0 CACHE" >&2
	exit 2
fi
PATH=$PATH:/usr/sbin:/sbin
recipe=$(realpath "$0")

mkdir -p "$1"
cache=$(cd "$1" && pwd)
# Another recipe makes another directory: a cache from before is not mistaken.
name=debian-12-$(sha256sum <"$recipe" | cut -c 1-12)
if [ "$(readlink "$cache/debian" || true)" = "$name" ] && [ -e "$cache/$name/disk.qcow2" ]; then
	exit 0
fi
# One at a time: it takes minutes, and nobody wants two.
exec 9>"$cache/debian.lock"
flock 9
if [ -e "$cache/$name/disk.qcow2" ]; then
	ln -sfn "$name" "$cache/debian"
	exit 0
fi
echo "building $cache/$name: some minutes, once" >&2

tmp=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$tmp" # apt downloads as its own user where it can
root=$tmp/root out=$tmp/out
mkdir "$out" "$tmp/boot"

packages=(
	systemd-sysv udev dbus libpam-systemd linux-image-cloud-amd64 initramfs-tools lz4
	cloud-init cloud-guest-utils fdisk e2fsprogs qemu-guest-agent openssh-server openssh-client sudo
	iproute2 iputils-ping netbase procps kmod less socat
)
# What a guest under test need not do, and an emulated one does for long.
masked=(
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
	fstrim.timer systemd-pcrphase.service systemd-pcrphase-sysinit.service ldconfig.service
	modprobe@.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
)

# sources are the host's own where they have this release, for the mirror that it reaches.
sources=()
if grep -qs bookworm /etc/apt/sources.list.d/debian.sources; then
	sources=(/etc/apt/sources.list.d/debian.sources)
fi

make_root() {
	mmdebstrap --quiet --mode=root --variant=minbase --include="$(IFS=, && echo "${packages[*]}")" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='APT::Install-Recommends "false"' \
		--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/guest" &&
			echo COMPRESS=lz4 >>"$1/etc/initramfs-tools/conf.d/guest" &&
			printf "%s\n" virtio_pci virtio_blk virtio_scsi sd_mod ext4 >"$1/etc/initramfs-tools/modules"' \
		bookworm "$root" "${sources[@]}"
}

# put PATH: writes a file of the guest's from standard input.
put() { install -D -m 644 /dev/stdin "$root/$1"; }

configure_root() {
	: >"$root/etc/machine-id" # each guest makes its own when it boots
	rm -f "$root"/etc/ssh/ssh_host_*
	echo debian >"$root/etc/hostname"
	echo "UUID=$uuid / ext4 defaults,errors=remount-ro 0 0" >"$root/etc/fstab"
	local unit
	for unit in "${masked[@]}"; do
		ln -sf /dev/null "$root/etc/systemd/system/$unit"
	done
	chroot "$root" systemctl --quiet enable systemd-networkd ssh qemu-guest-agent

	put etc/cloud/cloud.cfg.d/90-guest.cfg <<-'END'
		# More than one, so that cloud-init looks for them, and stays away where none is.
		datasource_list: [ NoCloud, ConfigDrive, None ]
		# Made by locale-gen otherwise, and by ssh-keygen for RSA, in minutes.
		locale: C.UTF-8
		ssh_genkeytypes: [ ed25519 ]
	END
	# Without a seed the guest has its address from DHCP; what cloud-init writes comes first.
	put etc/systemd/network/99-dhcp.network <<-'END'
		[Match]
		Type=ether
		[Network]
		DHCP=yes
	END
	put etc/systemd/system/systemd-networkd-wait-online.service.d/guest.conf <<-'END'
		[Service]
		ExecStart=
		ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
	END
	put etc/systemd/system/ssh-keys.service <<-'END'
		[Unit]
		Description=Make a host key where cloud-init does not
		Before=ssh.service
		ConditionPathExists=!/run/cloud-init/enabled
		ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
		[Service]
		Type=oneshot
		ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
		[Install]
		WantedBy=ssh.service
	END
	chroot "$root" systemctl --quiet enable ssh-keys
	put etc/systemd/system/serial-getty@ttyS0.service.d/guest.conf <<-'END'
		[Service]
		ExecStart=
		ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - dumb
	END
}

# download PACKAGE...: unpacks packages into tmp/boot without installing them.
download() {
	(cd "$tmp/boot" && apt-get download -qq "$@" >"$tmp/apt.log" 2>&1) || {
		apt-get update -qq >"$tmp/apt.log" 2>&1 || true
		(cd "$tmp/boot" && apt-get download -qq "$@" >"$tmp/apt.log" 2>&1) || {
			cat "$tmp/apt.log" >&2
			return 1
		}
	}
	local deb
	for deb in "$tmp"/boot/*.deb; do
		dpkg -x "$deb" "$tmp/boot"
	done
}

# menu is what both GRUBs read.
menu() {
	cat <<-END
		serial --unit=0 --speed=115200
		terminal_output console serial
		set timeout=0
		menuentry debian {
			linux /vmlinuz $cmdline
			initrd /initrd.img
		}
	END
}

# make_esp: the EFI system partition. The signed GRUB looks into /EFI/debian.
make_esp() {
	local boot=$tmp/boot/usr/lib
	mkfs.vfat -F 16 -n ESP -C "$tmp/esp" $((esp_sectors / 2)) >/dev/null
	mmd -i "$tmp/esp" ::EFI ::EFI/BOOT ::EFI/debian
	mcopy -i "$tmp/esp" "$boot/shim/shimx64.efi.signed" ::EFI/BOOT/BOOTX64.EFI
	mcopy -i "$tmp/esp" "$boot/shim/mmx64.efi.signed" ::EFI/BOOT/mmx64.efi
	mcopy -i "$tmp/esp" "$boot/grub/x86_64-efi-signed/grubx64.efi.signed" ::EFI/BOOT/grubx64.efi
	printf 'search --fs-uuid --set=root %s\nconfigfile /boot/grub/grub.cfg\n' "$uuid" >"$tmp/esp.cfg"
	mcopy -i "$tmp/esp" "$tmp/esp.cfg" ::EFI/debian/grub.cfg
}

# number VALUE BYTES: the value in little-endian order.
number() {
	local i
	for ((i = 0; i < $2; i++)); do
		printf "\\x$(printf %02x $(($1 >> 8 * i & 255)))"
	done
}

# patch FILE OFFSET: overwrites the file there with standard input.
patch() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# make_grub: boot.img for the disk's first sector, and core.img, which that loads from
# the BIOS boot partition. Where it lies is written into both, as grub-bios-setup does
# (grub-core/boot/i386/pc/boot.S, kernel_sector; diskboot.S, the block list).
make_grub() {
	local grub=$tmp/boot/usr/lib/grub/i386-pc
	printf 'search --fs-uuid --set=root %s\nset prefix=($root)/boot/grub\n' "$uuid" >"$tmp/bios.cfg"
	"$tmp/boot/usr/bin/grub-mkimage" -d "$grub" -O i386-pc -c "$tmp/bios.cfg" -p /boot/grub -o "$tmp/core.img" \
		biosdisk part_gpt ext2 search search_fs_uuid linux normal configfile serial terminal boot
	cp "$grub/boot.img" "$tmp/boot.img"
	local sectors=$((($(stat -c %s "$tmp/core.img") + 511) / 512))
	number $bios_start 8 | patch "$tmp/boot.img" $((0x5c))
	number $((bios_start + 1)) 8 | patch "$tmp/core.img" $((0x1f4))
	number $((sectors - 1)) 2 | patch "$tmp/core.img" $((0x1fc))
}

# In sectors of 512 bytes. The root is the last, so that it can grow.
disk_sectors=$((2 << 21)) bios_start=2048
esp_start=4096 esp_sectors=32768
root_start=$((esp_start + esp_sectors)) root_sectors=$((disk_sectors - esp_start - esp_sectors - 2048))

make_disk() {
	local disk=$tmp/disk
	truncate -s $((disk_sectors * 512)) "$disk"
	sfdisk --quiet "$disk" <<-END
		label: gpt
		start=$bios_start, size=$((esp_start - bios_start)), type=21686148-6449-6E6F-744E-656564454649, name=bios
		start=$esp_start, size=$esp_sectors, type=uefi, name=esp
		start=$root_start, size=$root_sectors, type=linux, name=root
	END
	head -c 440 "$tmp/boot.img" | dd of="$disk" conv=notrunc status=none # behind that is the partition table
	dd if="$tmp/core.img" of="$disk" seek=$bios_start conv=notrunc status=none
	dd if="$tmp/esp" of="$disk" bs=1M seek=$((esp_start >> 11)) conv=notrunc,sparse status=none
	mkfs.ext4 -q -L root -U "$uuid" -m 0 -E offset=$((root_start * 512)),lazy_itable_init=0,lazy_journal_init=0 \
		-d "$root" "$disk" $((root_sectors / 2))
	qemu-img convert -O qcow2 "$disk" "$out/disk.qcow2"
}

uuid=$(cat /proc/sys/kernel/random/uuid)
cmdline="root=UUID=$uuid ro console=tty0 console=ttyS0 quiet mitigations=off nokaslr random.trust_cpu=on tsc=reliable no_timer_check cryptomgr.notests"

make_root
configure_root
download shim-signed shim-unsigned shim-helpers-amd64-signed grub-efi-amd64-signed grub-pc-bin grub-common
mkdir -p "$root/boot/grub"
menu >"$root/boot/grub/grub.cfg"
cp -L "$root/vmlinuz" "$root/initrd.img" "$out"
echo "$cmdline" >"$out/cmdline"
make_esp
make_grub
make_disk

chmod -R a+rX "$out"
mv -T "$out" "$cache/$name"
ln -sfn "$name" "$cache/debian"
echo "$cache/debian -> $name" >&2
