package tracker

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Peers come, go, replace each other and say what they like, all at once.
func TestChurn(t *testing.T) {
	const peers, rounds, actions = 50, 4, 15
	c := newCluster(t, small, func(o *Options) { o.MaxParents = 8 })
	stop := make(chan struct{})
	var background, all sync.WaitGroup
	background.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.tick()
				c.Peers()
				c.Holders(c.id)
			}
		}
	})
	for i := range peers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				// Fewer names than peers: some replace each other.
				name := fmt.Sprint("node", i%(peers*4/5))
				d := c.dial(hello(&apiv1.Hello{Name: name, Zone: fmt.Sprint("zone", i%3), PeerAddress: "198.51.100.1:1"}))
				for range actions {
					c.act(d, random)
				}
				d.leave()
			}
		})
	}
	all.Wait()
	close(stop)
	background.Wait()
	testenv.Eventually(t, func() bool { return len(c.Peers()) == 0 }, "all have left")
	c.Tracker.mu.Lock()
	if n := len(c.swarms); n != 0 {
		t.Errorf("%d swarms are left", n)
	}
	c.Tracker.mu.Unlock()
	// And it still works.
	d := c.join("last", c.interest(1))
	d.waitInfo(1)
	d.waitDigests()
	d.waitParents(self)
}

// act does something that a daemon might do.
func (c *cluster) act(d *daemon, random *rand.Rand) {
	n := c.table.Count()
	piece := uint32(random.IntN(n))
	other := fmt.Sprint("node", random.IntN(40))
	switch random.IntN(9) {
	case 0, 1, 2:
		d.send(c.interest(1))
	case 3:
		set := task.NewSet(n)
		set.Add(int(piece))
		d.send(c.held(set))
	case 4:
		d.send(c.finished(int(piece), random.IntN(n)))
	case 5:
		d.send(c.leaveTask())
	case 6:
		d.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{TaskId: string(c.id), Pieces: []uint32{piece}}}})
	case 7:
		d.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(c.id), Pieces: []uint32{piece}}}})
	case 8:
		if f, err := c.Feed(c.id, other); err == nil {
			f.Set()
			f.Close()
		}
		d.send(c.badPiece(other))
	}
}

// FuzzMessages sends what it likes on a stream, between messages that make
// sense.
func FuzzMessages(f *testing.F) {
	c := newCluster(f, small, nil)
	for _, m := range []*apiv1.PeerMessage{
		c.interest(1), c.finished(1, 99), c.leaveTask(), c.badPiece("b"), c.held(task.FullSet(c.table.Count())),
		held(&apiv1.Held{TaskId: string(c.id), Table: &apiv1.Table{Length: 1, Ends: []int64{1}}, Complete: true}),
		{Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{TaskId: string(c.id), Pieces: []uint32{1 << 31}}}},
		{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(c.id), Pieces: []uint32{1 << 31}}}},
		{Kind: &apiv1.PeerMessage_CommandStatus{CommandStatus: &apiv1.CommandStatus{Id: 1}}},
		hello(&apiv1.Hello{Name: "x"}), {},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	steady := c.join("steady", c.interest(1), c.finished(0))
	steady.waitInfo(1)
	f.Fuzz(func(_ *testing.T, b []byte) {
		var m apiv1.PeerMessage
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		if s := m.GetInterest().GetSource(); s != nil {
			s.Url = c.source().Url // no other network
		}
		d := c.dial(hello(&apiv1.Hello{Name: "a", PeerAddress: "127.0.0.1:1"}), &m, c.interest(2), &m)
		d.leave()
	})
}

// The digests of a large table are more than one message may have.
func TestDigestsAreDivided(t *testing.T) {
	c := newCluster(t, small, nil)
	ends := make([]int64, 0, small/256)
	for end := int64(256); end < small; end += 256 {
		ends = append(ends, end)
	}
	c.table = task.Variable(append(ends, small))
	src := c.source()
	src.Table = wire.FromTable(c.table)
	d := c.join("a", interest(&apiv1.Interest{Request: 1, Source: src, Whole: true}))
	d.waitInfo(1)
	d.waitDigests()
	for _, m := range d.messages() {
		if n := len(m.GetDigests().GetDigests()); n > maxRun {
			t.Errorf("a message has %d bytes of digests", n)
		}
	}
}

func TestOutboxIsBounded(t *testing.T) {
	ended := make(chan error, 10)
	o := newOutbox(func(err error) { ended <- err })
	for range maxQueue {
		o.send(&apiv1.SupernodeMessage{})
	}
	if len(ended) != 0 {
		t.Error("the stream was ended early")
	}
	o.send(&apiv1.SupernodeMessage{})
	if err := <-ended; err != errNotReading { //nolint:errorlint // the very value
		t.Errorf("ended with %v", err)
	}
	if queue, dirty := o.take(); len(queue) != maxQueue || dirty != nil {
		t.Errorf("%d messages and %v are kept", len(queue), dirty)
	}
}
