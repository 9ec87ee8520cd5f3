package netsetup

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

const (
	// largestFrame is what a guest can hand over at once: 64 KiB to be segmented,
	// which count with a header for each segment (net/core/dev.c,
	// qdisc_pkt_len_segs_init), so the more the smaller they are.
	largestFrame = 80 << 10
	// burstTime is how long a burst lasts at the limit. It must not be less than
	// the kernel's timer tick, 10 ms at the longest (tc-tbf(8), burst).
	burstTime = 10 * time.Millisecond
	// queueTime is how long a frame waits at most before it is dropped instead.
	queueTime = 50 * time.Millisecond
	// maxPolice is what nft_limit can count with: a second's nanoseconds times
	// the bytes in a bucket are to fit into 64 bits.
	maxPolice = 17e9 // bytes/s
)

// Shape gives the child the limits b, whatever it had; 0 is none. Limits that
// are the same already are not touched. Rates are kept in whole bytes per second
// and count Ethernet frames without preamble and check sequence, inbound ones
// without the Ethernet header too. The error is a *LinkError.
//
// Outbound, what the guest sends is shaped by a token bucket with 10 ms of burst
// (tc-tbf(8)); frames over the limit wait up to 50 ms. Where those times are too
// short for one frame of 64 KiB, at less than about 60 Mbit/s and 13 Mbit/s, they
// are longer. Inbound there is no place to wait, and frames over the
// limit are dropped; there a guest that was idle may first receive what the
// limit lets through in a second, because no bucket of nftables is smaller
// (net/netfilter/nft_limit.c, nft_limit_init).
func (ns *Namespace) Shape(c Child, b configs.Bandwidth) error {
	err := ns.Do(func() error {
		if err := shapeOutbound(c, uint64(b.Outbound/8)); err != nil {
			return err
		}
		return policeInbound(c, uint64(b.Inbound/8))
	})
	if err != nil {
		return c.err("shape", err)
	}
	return nil
}

// Shaped reads the child's limits from the kernel, in multiples of 8 bits.
func (ns *Namespace) Shaped(c Child) (b configs.Bandwidth, err error) {
	err = ns.Do(func() error {
		tbf, err := findShaper(c)
		if err != nil {
			return err
		}
		if tbf != nil {
			b.Outbound = configs.Rate(tbf.Rate * 8)
		}
		p, err := findPolicer(c)
		b.Inbound = configs.Rate(p.rate * 8)
		return err
	})
	if err != nil {
		return configs.Bandwidth{}, c.err("read limits", err)
	}
	return b, nil
}

func shapeOutbound(c Child, rate uint64) error {
	have, err := findShaper(c)
	switch {
	case err != nil:
		return err
	case have == nil && rate == 0:
		return nil
	case rate == 0:
		return netlink.QdiscDel(have)
	case have != nil && have.Rate == rate:
		return nil
	}
	return netlink.QdiscReplace(newShaper(c, rate))
}

// newShaper builds a token bucket filter of so many bytes per second.
func newShaper(c Child, rate uint64) *netlink.Tbf {
	in := func(d time.Duration) uint64 { return rate / uint64(time.Second/d) }
	burst := max(in(burstTime), largestFrame)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: c.Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(burst)),
		Limit:      uint32(min(max(in(queueTime), largestFrame), math.MaxUint32)),
	}
}

// findShaper returns the token bucket filter at the child's root, or nil.
func findShaper(c Child) (*netlink.Tbf, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(c.link()) })
	if err != nil {
		return nil, err
	}
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Parent == netlink.HANDLE_ROOT {
			return tbf, nil
		}
	}
	return nil, nil
}

// policer is the rule that drops what is over a limit.
type policer struct {
	rate           uint64 // bytes/s; 0 where there is none
	packets, bytes uint64 // dropped
}

func policeInbound(c Child, rate uint64) error {
	rate = min(rate, maxPolice)
	have, err := findPolicer(c)
	if err != nil || have.rate == rate {
		return err
	}
	conn, err := openNFTables()
	if err != nil {
		return err
	}
	table := policeTable(c)
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	if rate == 0 {
		return conn.Flush()
	}
	// The chain is bound by name, since Linux 6.16 even to a link that is not there.
	if link, err := netlink.LinkByIndex(c.Index); err != nil {
		return err
	} else if link.Attrs().Name != c.Name {
		return fmt.Errorf("link %d is %q: it is not the one that was made", c.Index, link.Attrs().Name)
	}
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "ingress", Device: c.Name, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Limit{Type: expr.LimitTypePktBytes, Rate: rate, Unit: expr.LimitTimeSecond, Burst: largestFrame, Over: true},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return conn.Flush()
}

// findPolicer reads the child's policer, which is zero where there is none.
func findPolicer(c Child) (p policer, err error) {
	conn, err := openNFTables()
	if err != nil {
		return policer{}, err
	}
	table := policeTable(c)
	rules, err := conn.GetRules(table, &nftables.Chain{Name: "ingress", Table: table})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) { // the latter of a kernel without netfilter
		return policer{}, nil
	}
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			switch e := e.(type) {
			case *expr.Limit:
				p.rate = e.Rate
			case *expr.Counter:
				p.packets, p.bytes = e.Packets, e.Bytes
			}
		}
	}
	return p, err
}

// unlimit takes the policer of a child away that is gone. The kernel leaves it
// behind, and since Linux 6.16 puts it on the next link of the same name.
func unlimit(c Child) { _ = policeInbound(c, 0) }

func policeTable(c Child) *nftables.Table {
	return &nftables.Table{Name: "vmrun-" + c.Name + "-inbound", Family: nftables.TableFamilyNetdev}
}

// openNFTables opens nftables in the namespace of the calling thread; each call
// on it has a socket of its own.
func openNFTables() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(conn *mdlayher.Conn) error {
		return conn.SetDeadline(time.Now().Add(kernelTime))
	}))
}
