package scheduler

import "math"

// shareLinks sets the rates of all flows, max-min fairly.
func (s *sim) shareLinks() {
	type link struct {
		left  float64
		flows int
	}
	links := make([]link, 2*len(s.peers)) // up of peer i at 2i, down at 2i+1
	for i, p := range s.peers {
		links[2*i].left, links[2*i+1].left = p.up, p.down
	}
	var open []*simFlow
	for _, f := range s.flows {
		f.rate = 0
		if f.moving {
			open = append(open, f)
			links[2*f.from.id].flows++
			links[2*f.to.id+1].flows++
		}
	}
	for len(open) > 0 {
		tight, fair := -1, math.Inf(1)
		for i, l := range links {
			if l.flows > 0 && l.left/float64(l.flows) < fair {
				tight, fair = i, l.left/float64(l.flows)
			}
		}
		rest := open[:0]
		for _, f := range open {
			up, down := 2*f.from.id, 2*f.to.id+1
			if up != tight && down != tight {
				rest = append(rest, f)
				continue
			}
			f.rate = fair
			for _, l := range []int{up, down} {
				links[l].left = max(0, links[l].left-fair)
				links[l].flows--
			}
		}
		open = rest
	}
}
