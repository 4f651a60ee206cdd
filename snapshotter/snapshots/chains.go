package snapshots

import "sync"

// chains knows, by chain ID, which lazy snapshots there are and who uses their
// mounts.
type chains struct {
	mu  sync.Mutex
	all map[string]*chain
}

type chain struct {
	snapshots map[string]bool // names of the lazy snapshots
	users     map[string]bool // keys of active snapshots and views
}

// get returns the entry of a chain ID, made if need be. c.mu is held.
func (c *chains) get(id string) *chain {
	if c.all == nil {
		c.all = map[string]*chain{}
	}
	e := c.all[id]
	if e == nil {
		e = &chain{snapshots: map[string]bool{}, users: map[string]bool{}}
		c.all[id] = e
	}
	return e
}

// add takes note of a lazy snapshot.
func (c *chains) add(id, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.get(id).snapshots[name] = true
}

// drop forgets a lazy snapshot, and reports whether it was the last one.
func (c *chains) drop(id, name string) (last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(id)
	delete(e.snapshots, name)
	if len(e.snapshots) > 0 {
		return false
	}
	delete(c.all, id)
	return true
}

// has reports whether there is any lazy snapshot with the chain ID.
func (c *chains) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.all[id]
	return e != nil && len(e.snapshots) > 0
}

// use takes note of a snapshot that uses the chain's mount, or is about to, and
// reports whether that is new.
func (c *chains) use(id, key string) (added bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(id)
	added = !e.users[key]
	e.users[key] = true
	return added
}

// unuse forgets it, and reports whether the mount of a chain that is still there
// has lost its last user.
func (c *chains) unuse(id, key string) (idle bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.all[id]
	if e == nil || !e.users[key] {
		return false
	}
	delete(e.users, key)
	return len(e.users) == 0
}

func (c *chains) used(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.all[id]
	return e != nil && len(e.users) > 0
}
