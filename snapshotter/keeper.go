package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/fdkeeper"
)

// holdTimeout bounds a request to the holders of the kernel's files.
const holdTimeout = 5 * time.Second

// descriptors is how many this process and the keeper may have open: three for
// each incomplete device, one for each connection.
const descriptors = 1 << 20

// keeper has the kernel's files held by other processes: the keeper, systemd or
// else dfdaemon. It is what the backends know as Keeper.
type keeper struct {
	holders *fdkeeper.Multi
	members []fdkeeper.Member // of holders; the keeper itself first
	closers []func() error
	spare   *spare // nil with systemd
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu   sync.Mutex
	kept map[string][]*os.File // of the sets that are held, until they are dropped
}

// openKeeper connects to the holders, and sees to it that each has all.
func openKeeper(ctx context.Context, c *Config, log *slog.Logger) (_ *keeper, err error) {
	if _, err := fdkeeper.RaiseFileLimit(descriptors); err != nil {
		log.Warn("few files can be open: few images can be mounted", "error", err)
	}
	k := &keeper{kept: map[string][]*os.File{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	client := func(name, socket string) fdkeeper.Member {
		x := fdkeeper.NewClient(socket)
		k.closers = append(k.closers, x.Close)
		return fdkeeper.Member{Name: name, Holder: x}
	}
	members := []fdkeeper.Member{client("keeper", c.Keeper)}
	inherited, err := fdkeeper.Inherit()
	if err != nil {
		return nil, fmt.Errorf("take over what systemd holds: %w", err)
	}
	systemd, _, err := fdkeeper.NewSystemd(ctx, inherited, os.Getenv)
	switch {
	case errors.Is(err, fdkeeper.ErrNoStore):
		k.spare = &spare{socket: besideSocket(c.Keeper, "-spare"), log: log}
		members = append(members, client("dfdaemon", besideSocket(c.Dfdaemon, "-fds")), client("spare keeper", k.spare.socket))
		if err := k.spare.ensure(ctx); err != nil {
			log.Error("there is no spare keeper: lazy images are lost if all other holders die at once", "error", err)
		}
	case err != nil:
		return nil, fmt.Errorf("take over what systemd holds: %w", err)
	default:
		members = append(members, fdkeeper.Member{Name: "systemd", Holder: systemd})
		k.closers = append(k.closers, systemd.Close)
	}
	if k.holders, err = fdkeeper.NewMulti(fdkeeper.MultiOptions{Log: log}, members...); err != nil {
		return nil, err
	}
	k.members = members
	return k, nil
}

// run sees to it that each holder has what the others have, until close.
func (k *keeper) run(log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.wg.Go(func() {
		if err := k.holders.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("the holders of the kernel's files are not kept alike any more", "error", err)
		}
	})
	if k.spare != nil {
		k.wg.Go(func() { k.spare.run(ctx) })
	}
}

// besideSocket is the path of another socket of the same daemon.
func besideSocket(socket, suffix string) string {
	ext := filepath.Ext(socket)
	return strings.TrimSuffix(socket, ext) + suffix + ext
}

// Put has files held under a name. They may be closed afterwards.
func (k *keeper) Put(name string, meta []byte, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), holdTimeout)
	defer cancel()
	own, err := duplicates(files)
	if err != nil {
		return err
	}
	err = k.holders.Put(ctx, fdkeeper.Set{Name: name, Meta: meta, Files: own})
	if err != nil {
		closeAll(own)
		return err
	}
	k.keep(name, own)
	return nil
}

// keep closes what was kept under a name before: the holders are given what a
// restarted one of them lacks from these files.
func (k *keeper) keep(name string, files []*os.File) {
	k.mu.Lock()
	old := k.kept[name]
	if files == nil {
		delete(k.kept, name)
	} else {
		k.kept[name] = files
	}
	k.mu.Unlock()
	closeAll(old)
}

// Get returns new descriptors of the files held under a name; the error wraps
// fs.ErrNotExist if there are none.
func (k *keeper) Get(name string) ([]byte, []*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), holdTimeout)
	defer cancel()
	set, err := k.holders.Get(ctx, name)
	if errors.Is(err, fdkeeper.ErrNotFound) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, nil, err
	}
	k.keep(name, set.Files)
	files, err := duplicates(set.Files)
	return set.Meta, files, err
}

// Drop forgets a name.
func (k *keeper) Drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), holdTimeout)
	defer cancel()
	err := k.holders.Drop(ctx, name)
	k.keep(name, nil)
	return err
}

// duplicates returns new descriptors of files, all or none.
func duplicates(files []*os.File) ([]*os.File, error) {
	all := make([]*os.File, 0, len(files))
	for _, f := range files {
		d, err := duplicate(f)
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("duplicate the descriptor of %s: %w", f.Name(), err)
		}
		all = append(all, d)
	}
	return all, nil
}

// duplicate leaves the mode of f as it is, which File.Fd would not.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil // #nosec G115 -- a descriptor
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a duplicate that nothing was written through
	}
}

// names returns what is held.
func (k *keeper) names(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	entries, err := k.holders.List(ctx)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	return names, err
}

// usable reports whether somebody would hold what is mounted now: one holder is
// enough to survive this process.
func (k *keeper) usable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	answers := make(chan error, len(k.members))
	for _, m := range k.members {
		go func() { // ends with ctx
			_, err := m.List(ctx)
			answers <- err
		}()
	}
	var errs []error
	for range k.members {
		err := <-answers
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// reachable reports whether the keeper itself answers.
func (k *keeper) reachable(ctx context.Context) error {
	_, err := k.members[0].List(ctx)
	return err
}

// stop ends run. It is to be called before the files that were put are closed.
func (k *keeper) stop() {
	if k.cancel != nil {
		k.cancel()
		k.wg.Wait()
	}
}

func (k *keeper) close() error {
	k.stop()
	for _, files := range k.kept {
		closeAll(files)
	}
	var errs []error
	for _, c := range k.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// RunKeeper is a keeper: it returns when ctx ends, or with an error when it
// cannot start or go on.
func RunKeeper(ctx context.Context, c KeeperConfig, log *slog.Logger) error {
	if _, err := fdkeeper.RaiseFileLimit(descriptors); err != nil {
		log.Warn("few files can be held: few images can be mounted", "error", err)
	}
	// Whoever reads the log may be killed with all others: then this process must
	// not end by a line that it writes.
	signal.Ignore(syscall.SIGPIPE)
	if err := os.MkdirAll(filepath.Dir(c.Address), 0o755); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	lis, err := fdkeeper.Listen(ctx, c.Address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	server := fdkeeper.NewServer(log)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.Unused > 0 {
		go endUnused(ctx, cancel, server, c.Unused)
	}
	log.Info("the keeper is up", "address", c.Address)
	if err := cli.NotifyReady(); err != nil {
		log.Warn("systemd was not told that the keeper is ready", "error", err)
	}
	return errors.Join(server.Serve(ctx, lis), server.Close())
}
