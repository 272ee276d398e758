// A server on the centrifuge library: JWT in the connect command, the Redis broker with history and recovery, its own
// consumer of the bus, and client publications.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/golang-jwt/jwt/v5"
	"github.com/redis/rueidis"
)

const (
	historySize = 1000
	historyTTL  = 600 * time.Second
	stream      = "bench:stream"
	group       = "centrifuge"
	batch       = 500 // entries read at once
	workers     = 16  // each publishes the messages of its channels in order
)

// Claims are those of every token of the benchmark.
type Claims struct {
	UserID  string   `json:"user_id"`
	Name    string   `json:"name"`
	Groups  []string `json:"groups"`
	Threads []string `json:"threads"`
	jwt.RegisteredClaims
}

// recoverable subscribes a connection to a channel with history.
var recoverable = centrifuge.SubscribeOptions{EnableRecovery: true}

func main() {
	node, err := centrifuge.New(centrifuge.Config{})
	check(err)
	address := "unix://" + os.Getenv("BENCH_REDIS")
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: address})
	check(err)
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{Shards: []*centrifuge.RedisShard{shard}})
	check(err)
	node.SetBroker(broker)
	node.SetController(broker)
	node.OnConnecting(authenticate([]byte(os.Getenv("BENCH_KEY"))))
	node.OnConnect(handle)
	check(node.Run())
	check(consume(node, os.Getenv("BENCH_REDIS")))

	handler := centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{UseWriteBufferPool: true})
	http.Handle("/connection/websocket", handler)
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("BENCH_PORT"))
	check(err)
	go func() { check(http.Serve(listener, nil)) }()
	fmt.Println("ready")

	ended, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	<-ended.Done()
}

// authenticate verifies the token, and subscribes the connection to the user's own channel and to those of their groups.
func authenticate(key []byte) centrifuge.ConnectingHandler {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired())
	return func(ctx context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		claims := new(Claims)
		_, err := parser.ParseWithClaims(event.Token, claims, func(*jwt.Token) (any, error) { return key, nil })
		if err != nil || claims.UserID == "" {
			return centrifuge.ConnectReply{}, centrifuge.DisconnectInvalidToken
		}
		subscriptions := map[string]centrifuge.SubscribeOptions{"user:" + claims.UserID: recoverable}
		for _, name := range claims.Groups {
			subscriptions["presence:"+name] = centrifuge.SubscribeOptions{}
		}
		info, err := json.Marshal(map[string]string{"name": claims.Name})
		if err != nil {
			return centrifuge.ConnectReply{}, err
		}
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: claims.UserID, Info: info, ExpireAt: claims.ExpiresAt.Unix()},
			Subscriptions: subscriptions,
			Storage:       map[string]any{"threads": claims.Threads},
		}, nil
	}
}

// handle lets a connection subscribe to the threads of its token, and publish to the channels it is subscribed to.
func handle(client *centrifuge.Client) {
	storage, release := client.AcquireStorage()
	threads, _ := storage["threads"].([]string)
	release(storage)

	client.OnSubscribe(func(event centrifuge.SubscribeEvent, reply centrifuge.SubscribeCallback) {
		thread, isThread := strings.CutPrefix(event.Channel, "thread:")
		if !isThread || !slices.Contains(threads, thread) {
			reply(centrifuge.SubscribeReply{}, centrifuge.ErrorPermissionDenied)
			return
		}
		reply(centrifuge.SubscribeReply{Options: recoverable}, nil)
	})
	client.OnPublish(func(event centrifuge.PublishEvent, reply centrifuge.PublishCallback) {
		if !client.IsSubscribed(event.Channel) {
			reply(centrifuge.PublishReply{}, centrifuge.ErrorPermissionDenied)
			return
		}
		// Typing and presence: without history, and from whom they are is what the server says.
		reply(centrifuge.PublishReply{Options: centrifuge.PublishOptions{ClientInfo: event.ClientInfo}}, nil)
	})
	client.OnRefresh(func(_ centrifuge.RefreshEvent, reply centrifuge.RefreshCallback) {
		reply(centrifuge.RefreshReply{Expired: true}, nil)
	})
}

// entry is a message of the bus on its way to its channel.
type entry struct {
	id, channel string
	data        []byte
}

// consume publishes the messages of the bus. All servers share one consumer group, so each message is published once.
func consume(node *centrifuge.Node, socket string) error {
	redis, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{socket},
		DialCtxFn: func(ctx context.Context, path string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		DisableCache: true,
	})
	if err != nil {
		return err
	}
	create := redis.B().XgroupCreate().Key(stream).Group(group).Id("0").Mkstream().Build()
	if err := redis.Do(context.Background(), create).Error(); err != nil && !rueidis.IsRedisBusyGroup(err) {
		return err
	}
	queues := make([]chan entry, workers)
	for index := range queues {
		queues[index] = make(chan entry, batch)
		go publish(node, redis, queues[index])
	}
	go read(redis, queues)
	return nil
}

// read hands the entries of the stream to the workers: those of one channel to the same worker.
func read(redis rueidis.Client, queues []chan entry) {
	consumer := fmt.Sprint(os.Getpid())
	for {
		command := redis.B().Xreadgroup().Group(group, consumer).Count(batch).Block(1000).Streams().Key(stream).Id(">").Build()
		found, err := redis.Do(context.Background(), command).AsXRead()
		if err != nil {
			if !rueidis.IsRedisNil(err) {
				log.Print(err)
				time.Sleep(100 * time.Millisecond)
			}
			continue
		}
		for _, each := range found[stream] {
			next, err := parse(each)
			if err != nil {
				log.Printf("%s: %v", each.ID, err)
				continue
			}
			hash := fnv.New32a()
			hash.Write([]byte(next.channel))
			queues[hash.Sum32()%workers] <- next
		}
	}
}

func parse(raw rueidis.XRangeEntry) (entry, error) {
	var message struct {
		Event string
		Data  struct {
			ThreadID string `json:"thread_id"`
		}
	}
	text := raw.FieldValues["message"]
	if err := json.Unmarshal([]byte(text), &message); err != nil {
		return entry{}, err
	}
	if message.Data.ThreadID == "" {
		return entry{}, errors.New("the message has no thread")
	}
	return entry{raw.ID, "thread:" + message.Data.ThreadID, []byte(text)}, nil
}

// publish publishes entries in order, and acknowledges them when there is time, or after a hundred.
func publish(node *centrifuge.Node, redis rueidis.Client, queue chan entry) {
	done := make([]string, 0, 100)
	for next := range queue {
		for {
			_, err := node.Publish(next.channel, next.data, centrifuge.WithHistory(historySize, historyTTL))
			if err == nil {
				break
			}
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
		}
		if done = append(done, next.id); len(queue) == 0 || len(done) == cap(done) {
			command := redis.B().Xack().Key(stream).Group(group).Id(done...).Build()
			if err := redis.Do(context.Background(), command).Error(); err != nil {
				log.Print(err) // delivered, and still pending
			}
			done = done[:0]
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
