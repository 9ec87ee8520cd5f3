package netsetup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What a filter says of a frame (linux/pkt_cls.h), and which of a shim's is ours.
const (
	tcPass   = 0 // TC_ACT_OK
	tcDrop   = 2 // TC_ACT_SHOT
	gatePrio = 1
)

// side is a direction in which frames pass the shim.
type side struct {
	name string
	hook uint32 // of the clsact queueing discipline
	mac  uint32 // where in the frame the guest's MAC is
}

var sides = []side{
	{"ingress", netlink.HANDLE_MIN_INGRESS, 6},
	{"egress", netlink.HANDLE_MIN_EGRESS, 0},
}

// gateProgram passes the frames whose MAC at an offset is one of macs, and
// drops all others. It is a classic BPF program, because the kernel gives it
// back as it was set, and it needs no file descriptor.
func gateProgram(offset uint32, macs []net.HardwareAddr) ([]byte, error) {
	var program []bpf.Instruction
	for _, mac := range macs {
		program = append(program,
			bpf.LoadAbsolute{Off: offset + 2, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(mac[2:]), SkipFalse: 3},
			bpf.LoadAbsolute{Off: offset, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(mac)), SkipFalse: 1},
			bpf.RetConstant{Val: tcPass},
		)
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{Val: tcDrop}))
	if err != nil {
		return nil, err
	}
	var ops []byte // struct sock_filter (linux/filter.h)
	for _, op := range raw {
		ops = binary.NativeEndian.AppendUint16(ops, op.Op)
		ops = append(ops, op.Jt, op.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, op.K)
	}
	return ops, nil
}

// gated reports whether the shim's filters pass exactly the frames from and to macs.
func gated(shim int, macs []net.HardwareAddr) (bool, error) {
	for _, s := range sides {
		want, err := gateProgram(s.mac, macs)
		if err != nil {
			return false, err
		}
		if have, err := readGate(shim, s); err != nil || !bytes.Equal(have, want) {
			return false, err
		}
	}
	return true, nil
}

// setGate makes the shim's filters pass the frames from and to macs, and no
// others. Each direction changes in one step (net/sched/cls_bpf.c, cls_bpf_change).
func setGate(shim int, macs []net.HardwareAddr) error {
	hook := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: shim, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(hook); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact: %w", err)
	}
	for _, s := range sides {
		ops, err := gateProgram(s.mac, macs)
		if err != nil {
			return err
		}
		req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_ACK)
		req.AddData(gateMsg(shim, s))
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
		options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
		options.AddRtAttr(nl.TCA_BPF_OPS_LEN, nl.Uint16Attr(uint16(len(ops)/8)))
		options.AddRtAttr(nl.TCA_BPF_OPS, ops)
		options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
		req.AddData(options)
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// readGate returns the program of the shim's filter on one side, or nil.
func readGate(shim int, s side) ([]byte, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
	msg := gateMsg(shim, s)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, answer := range answers {
		have := nl.DeserializeTcMsg(answer)
		if have.Handle != msg.Handle || have.Info != msg.Info {
			continue
		}
		attrs, err := nl.ParseRouteAttrAsMap(answer[have.Len():])
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		options, err := nl.ParseRouteAttrAsMap(attrs[nl.TCA_OPTIONS].Value)
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		return options[nl.TCA_BPF_OPS].Value, nil
	}
	return nil, nil
}

func gateMsg(shim int, s side) *nl.TcMsg {
	return &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(shim), Handle: 1, Parent: s.hook,
		Info: netlink.MakeHandle(gatePrio, nl.Swap16(unix.ETH_P_ALL))}
}
