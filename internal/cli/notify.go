package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// NotifyReady tells systemd that a service of Type=notify is ready (sd_notify(3)).
// It does nothing where systemd did not ask for it.
func NotifyReady() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	_, err = conn.Write([]byte("READY=1"))
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}
