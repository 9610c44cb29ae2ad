//! The origin of the side-by-side runs: HTTP/1, HTTP/2 with prior knowledge, and bulk TCP, on one thread.

use clap::Parser;
use tokio::net::TcpListener;

/// Answers `/` with 1 KiB and `/N` with N bytes, as cheaply as possible. Prints its addresses as one JSON line.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address of the HTTP/1 port; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    h1: String,
    /// Address of the HTTP/2 port (prior knowledge, plaintext).
    #[arg(long, default_value = "127.0.0.1:0")]
    h2: String,
    /// Address of the bulk port.
    #[arg(long, default_value = "127.0.0.1:0")]
    bulk: String,
    /// End when the process that started this one ends.
    #[arg(long)]
    end_with_parent: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.end_with_parent {
        remora_benches::end_with_parent()?;
    }
    remora_benches::local_runtime()?.block_on(async {
        let h1 = TcpListener::bind(&args.h1).await?;
        let h2 = TcpListener::bind(&args.h2).await?;
        let bulk = TcpListener::bind(&args.bulk).await?;
        let addresses = serde_json::json!({
            "h1": h1.local_addr()?, "h2": h2.local_addr()?, "bulk": bulk.local_addr()?,
        });
        println!("{addresses}");
        remora_benches::origin::serve(h1, h2, bulk).await
    })
}
